/* A disk that can lose power, for tests: LD_PRELOADed into the server, ours or Redis.
 *
 * kill -9 proves no fsync, because the page cache survives it. This shim writes down every change
 * to a file below POWER_CUT_DIR (old bytes, new bytes, old size) and every fsync that the kernel
 * was asked for. After the kill, the test's harness takes back whatever was not synced: all of it,
 * or any part of it, as a real power cut may.
 *
 *   POWER_CUT_DIR     only files below this folder are watched
 *   POWER_CUT_LOG     where the changes are written down (outside that folder)
 *   POWER_CUT_FAULT   while this file exists, its text is a fault: "write EIO", "write ENOSPC",
 *                     "write TORN" (half of it reaches the file, then EIO), "sync EIO",
 *                     "sync HANG" (no sync ends)
 *   POWER_CUT_NO_SYNC if set, syncs are not written down: the disk lies (a test that must fail)
 *
 * A record of the log, little endian:
 *   u8 kind (1 write, 2 truncate, 3 sync, 4 rename) · u16 path length · path · u64 offset · u64 old size
 *   · u32 old length · old bytes · u32 new length · new bytes
 * The new bytes of a rename are the new path: what was not synced under the old one is not synced
 * under the new one. Files written through stdio (Redis' RDB files) are not watched, since the C
 * library writes those itself, and a rename counts as durable at once: Redis syncs both before it
 * relies on them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KIND_WRITE = 1, KIND_TRUNCATE = 2, KIND_SYNC = 3, KIND_RENAME = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;

static ssize_t raw_write(int fd, const void *from, size_t n, off_t at) {
    return syscall(SYS_pwrite64, fd, from, n, at);
}

static int below_the_folder(const char *path) {
    const char *dir = getenv("POWER_CUT_DIR");
    if (!dir) return 0;
    size_t len = strlen(dir);
    return strncmp(path, dir, len) == 0 && path[len] == '/';
}

/* The path of a watched regular file, or 0. */
static int watched(int fd, char *path, struct stat *st) {
    if (fd < 0) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    if (!below_the_folder(path)) return 0;
    if (n > 4 && strcmp(path + n - 4, "-shm") == 0) return 0; /* rebuilt at every start */
    return fstat(fd, st) == 0 && S_ISREG(st->st_mode);
}

static void put(const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        ssize_t done = syscall(SYS_write, log_fd, p, n);
        if (done <= 0) {
            fprintf(stderr, "power_cut: the log can't be written\n");
            abort();
        }
        p += done;
        n -= (size_t)done;
    }
}

static void note(uint8_t kind, const char *path, uint64_t offset, uint64_t old_size,
                 const void *old, uint32_t old_len, const void *fresh, uint32_t fresh_len) {
    if (log_fd < 0) {
        const char *to = getenv("POWER_CUT_LOG");
        log_fd = to ? (int)syscall(SYS_openat, AT_FDCWD, to,
                                   O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)
                    : -1;
        if (log_fd < 0) {
            fprintf(stderr, "power_cut: POWER_CUT_LOG can't be opened\n");
            abort();
        }
    }
    uint16_t path_len = (uint16_t)strlen(path);
    put(&kind, sizeof kind);
    put(&path_len, sizeof path_len);
    put(path, path_len);
    put(&offset, sizeof offset);
    put(&old_size, sizeof old_size);
    put(&old_len, sizeof old_len);
    put(old, old_len);
    put(&fresh_len, sizeof fresh_len);
    put(fresh, fresh_len);
}

enum { TORN = -1, HANG = -2 };

/* What fault is ordered for `act` ("write" or "sync"): an errno, TORN, HANG, or 0. */
static int fault(const char *act) {
    const char *from = getenv("POWER_CUT_FAULT");
    if (!from) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, from, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    char order[32] = {0};
    ssize_t n = syscall(SYS_read, fd, order, sizeof order - 1);
    syscall(SYS_close, fd);
    size_t len = strlen(act);
    if (n <= 0 || strncmp(order, act, len) != 0 || order[len] != ' ') return 0;
    const char *what = order + len + 1;
    if (strncmp(what, "EIO", 3) == 0) return EIO;
    if (strncmp(what, "ENOSPC", 6) == 0) return ENOSPC;
    if (strncmp(what, "TORN", 4) == 0) return TORN;
    if (strncmp(what, "HANG", 4) == 0) return HANG;
    return 0;
}

/* `n` bytes of the file at `at`, which are there. */
static char *old_bytes(int fd, size_t n, off_t at) {
    if (n == 0) return NULL;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    char *old = malloc(n);
    int again = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    if (!old || again < 0 || syscall(SYS_pread64, again, old, n, at) != (ssize_t)n) {
        fprintf(stderr, "power_cut: old bytes can't be read\n");
        abort();
    }
    syscall(SYS_close, again);
    return old;
}

static ssize_t change(int fd, const void *from, size_t n, off_t at, const char *path,
                      const struct stat *st) {
    int broken = fault("write");
    if (broken > 0) {
        errno = broken;
        return -1;
    }
    size_t reaches = broken < 0 ? n / 2 : n;
    uint64_t size = (uint64_t)st->st_size;
    size_t old_len = 0;
    if ((uint64_t)at < size) {
        uint64_t behind = size - (uint64_t)at;
        old_len = behind < reaches ? (size_t)behind : reaches;
    }
    char *old = old_bytes(fd, old_len, at);
    note(KIND_WRITE, path, (uint64_t)at, size, old, (uint32_t)old_len, from, (uint32_t)reaches);
    free(old);
    ssize_t done = raw_write(fd, from, reaches, at);
    if (broken < 0) {
        errno = EIO;
        return -1;
    }
    return done;
}

static ssize_t positioned(int fd, const void *from, size_t n, off_t at) {
    char path[PATH_MAX];
    struct stat st;
    if (!watched(fd, path, &st)) return raw_write(fd, from, n, at);
    pthread_mutex_lock(&lock);
    fstat(fd, &st);
    ssize_t done = change(fd, from, n, at, path, &st);
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return positioned(fd, from, n, at); }
ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) {
    return positioned(fd, from, n, at);
}

ssize_t write(int fd, const void *from, size_t n) {
    char path[PATH_MAX];
    struct stat st;
    if (!watched(fd, path, &st)) return syscall(SYS_write, fd, from, n);
    pthread_mutex_lock(&lock);
    fstat(fd, &st);
    int appends = fcntl(fd, F_GETFL) & O_APPEND;
    off_t at = appends ? st.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t done = change(fd, from, n, at, path, &st);
    if (done > 0 && !appends) lseek(fd, at + done, SEEK_SET);
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}

static int cut_to(int fd, off_t size) {
    char path[PATH_MAX];
    struct stat st;
    if (!watched(fd, path, &st)) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    fstat(fd, &st);
    size_t lost = size < st.st_size ? (size_t)(st.st_size - size) : 0;
    char *old = old_bytes(fd, lost, size);
    note(KIND_TRUNCATE, path, (uint64_t)size, (uint64_t)st.st_size, old, (uint32_t)lost, NULL, 0);
    free(old);
    int done = (int)syscall(SYS_ftruncate, fd, size);
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}

int ftruncate(int fd, off_t size) { return cut_to(fd, size); }
int ftruncate64(int fd, off_t size) { return cut_to(fd, size); }

static int synced(int fd, long call) {
    char path[PATH_MAX];
    struct stat st;
    if (!watched(fd, path, &st)) return (int)syscall(call, fd);
    while (fault("sync") == HANG) usleep(1000);
    pthread_mutex_lock(&lock);
    int broken = fault("sync");
    /* The page cache outlives the kill: asking the real disk would only cost time. */
    if (!broken && !getenv("POWER_CUT_NO_SYNC")) note(KIND_SYNC, path, 0, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (!broken) return 0;
    errno = EIO;
    return -1;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    char old_path[PATH_MAX], new_path[PATH_MAX];
    int known = realpath(from, old_path) && below_the_folder(old_path);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_rename, from, to);
    int kept = errno;
    if (known && done == 0 && realpath(to, new_path)) {
        uint32_t length = (uint32_t)strlen(new_path);
        note(KIND_RENAME, old_path, 0, 0, NULL, 0, new_path, length);
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}
