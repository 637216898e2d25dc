"""Types a phrase at the prompt of a program on a pseudo-terminal, and prints what the terminal showed."""

import os
import pty
import sys

PROMPT = b"Passphrase: "
PHRASE = b"open sesame\n"


def main() -> int:
    program = sys.argv[1]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(program, sys.argv[1:])
    shown = b""
    typed = False
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            # The program has closed its side.
            break
        if not chunk:
            break
        shown += chunk
        if not typed and PROMPT in shown:
            os.write(terminal, PHRASE)
            typed = True
    _, status = os.waitpid(child, 0)
    sys.stdout.buffer.write(shown)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
