//! Reads Rust far enough to judge it: comments and literals apart from code, tokens, paths, functions.
//!
//! Not a parser. It knows what no rule can do without: a word inside a string is not code, a brace
//! inside a comment closes nothing, `use a::{b, c::d}` names `a::b` and `a::c::d`.

/// A string literal, as it is written between its quotes.
pub struct Literal {
    /// Byte offset of the opening quote.
    pub at: usize,
    pub body: String,
    pub raw: bool,
}

impl Literal {
    /// The text that the program sees, as far as line breaks go: `\n` and continued lines.
    pub fn value(&self) -> String {
        if self.raw {
            return self.body.clone();
        }
        let mut value = String::new();
        let mut chars = self.body.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, chars.peek()) {
                ('\\', Some('n')) => {
                    chars.next();
                    value.push('\n');
                }
                ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                _ => value.push(c),
            }
        }
        value
    }
}

/// A word, a number, `::`, an opening quote, or one sign.
pub struct Token {
    pub at: usize,
    pub text: String,
}

impl Token {
    pub fn is_word(&self) -> bool {
        self.text
            .starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// A function with a body, or a declaration without one (then it ends where it begins).
pub struct Function {
    pub name: String,
    pub at: usize,
    pub end: usize,
    /// `#[test]`, `#[tokio::test(…)]` and the like stand before it.
    pub is_test: bool,
}

/// The text of one file, taken apart.
pub struct Rust {
    pub tokens: Vec<Token>,
    pub literals: Vec<Literal>,
}

impl Rust {
    pub fn read(text: &str) -> Self {
        let mut parts = Parts {
            text,
            at: 0,
            tokens: Vec::new(),
            literals: Vec::new(),
        };
        while parts.at < text.len() {
            parts.step();
        }
        Self {
            tokens: parts.tokens,
            literals: parts.literals,
        }
    }

    fn text(&self, i: usize) -> &str {
        self.tokens.get(i).map_or("", |t| t.text.as_str())
    }

    /// Whether the words of `sequence` stand one after the other, from token `i` on.
    pub fn stands(&self, i: usize, sequence: &[&str]) -> bool {
        sequence
            .iter()
            .enumerate()
            .all(|(n, word)| self.text(i + n) == *word)
    }

    /// Every path that is named, groups spread out: `use a::{b, c::d}` gives a::b and a::c::d.
    pub fn paths(&self) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        let mut i = 0;
        while i < self.tokens.len() {
            let begins = self.tokens[i].is_word() && (i == 0 || self.text(i - 1) != "::");
            i = if begins {
                self.path(i, &[], &mut found)
            } else {
                i + 1
            };
        }
        found
    }

    /// Reads the path that begins at token `i`, after `prefix`; returns the token behind it.
    fn path(
        &self,
        mut i: usize,
        prefix: &[String],
        found: &mut Vec<(usize, Vec<String>)>,
    ) -> usize {
        let at = self.tokens[i].at;
        let mut path = prefix.to_vec();
        path.push(self.text(i).to_owned());
        i += 1;
        while self.text(i) == "::" {
            if self.text(i + 1) == "{" {
                return self.group(i + 2, &path, found);
            }
            let goes_on = self.tokens.get(i + 1).is_some_and(Token::is_word);
            if !goes_on && self.text(i + 1) != "*" {
                break;
            }
            path.push(self.text(i + 1).to_owned());
            i += 2;
        }
        found.push((at, path));
        i
    }

    fn group(
        &self,
        mut i: usize,
        prefix: &[String],
        found: &mut Vec<(usize, Vec<String>)>,
    ) -> usize {
        while i < self.tokens.len() && self.text(i) != "}" {
            i = if self.tokens[i].is_word() && self.text(i - 1) != "as" || self.text(i) == "*" {
                self.path(i, prefix, found)
            } else {
                i + 1
            };
        }
        i + 1
    }

    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for i in 0..self.tokens.len() {
            // `fn(u8) -> u8` is a type.
            if self.text(i) == "fn" && self.tokens.get(i + 1).is_some_and(Token::is_word) {
                found.push(Function {
                    name: self.text(i + 1).to_owned(),
                    at: self.tokens[i].at,
                    end: self.body_end(i),
                    is_test: self.is_test(i),
                });
            }
        }
        found
    }

    /// The offset of the brace that closes the body of the function at token `i`.
    fn body_end(&self, i: usize) -> usize {
        let mut in_brackets = 0_usize;
        let mut braces = 0_usize;
        for token in &self.tokens[i..] {
            match token.text.as_str() {
                "(" | "[" if braces == 0 => in_brackets += 1,
                ")" | "]" if braces == 0 => in_brackets = in_brackets.saturating_sub(1),
                ";" if braces == 0 && in_brackets == 0 => return token.at,
                "{" => braces += 1,
                "}" => {
                    braces = braces.saturating_sub(1);
                    if braces == 0 {
                        return token.at;
                    }
                }
                _ => {}
            }
        }
        self.tokens.last().map_or(0, |t| t.at)
    }

    /// Whether an attribute whose path ends in `test` stands between the last item and token `i`.
    fn is_test(&self, i: usize) -> bool {
        let last_item = (0..i)
            .rev()
            .find(|n| matches!(self.text(*n), ";" | "{" | "}"))
            .unwrap_or(0);
        (last_item..i).any(|n| {
            self.text(n) == "test" && matches!(self.text(n + 1), "]" | "(") && {
                let before = self.text(n.saturating_sub(1));
                before == "[" || before == "::"
            }
        })
    }

    /// How many `mod name { … }` enclose the offset.
    pub fn inline_modules_around(&self, at: usize) -> usize {
        let mut open: Vec<bool> = Vec::new();
        for (i, token) in self.tokens.iter().enumerate() {
            if token.at >= at {
                break;
            }
            match token.text.as_str() {
                "{" => open.push(i >= 2 && self.text(i - 2) == "mod"),
                "}" => {
                    open.pop();
                }
                _ => {}
            }
        }
        open.into_iter().filter(|is_module| *is_module).count()
    }
}

struct Parts<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token>,
    literals: Vec<Literal>,
}

impl Parts<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn step(&mut self) {
        let rest = self.rest();
        let first = rest.chars().next().expect("the text is not at its end");
        if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            self.at += end;
        } else if rest.starts_with("/*") {
            self.at += block_comment_len(rest);
        } else if first == '"' {
            self.string(0);
        } else if let Some(prefix) = raw_prefix_len(rest) {
            self.raw_string(prefix);
        } else if first == '\'' {
            self.at += char_literal_len(rest).unwrap_or(1);
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            // b"…" and c"…" are strings with a letter before them.
            if end == 1 && rest[1..].starts_with('"') && matches!(first, 'b' | 'c') {
                self.string(1);
            } else if end == 1 && first == 'b' && rest[1..].starts_with('\'') {
                self.at += 1 + char_literal_len(&rest[1..]).unwrap_or(1);
            } else {
                self.token(end);
            }
        } else if rest.starts_with("::") {
            self.token(2);
        } else if first.is_whitespace() {
            self.at += first.len_utf8();
        } else {
            self.token(first.len_utf8());
        }
    }

    fn token(&mut self, len: usize) {
        let text = self.rest()[..len].to_owned();
        self.tokens.push(Token { at: self.at, text });
        self.at += len;
    }

    fn string(&mut self, prefix: usize) {
        let at = self.at;
        let body_at = at + prefix + 1;
        let mut escaped = false;
        let len = self.text[body_at..]
            .find(|c: char| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            })
            .unwrap_or(self.text.len() - body_at);
        self.literal(at, body_at, len, 1, false);
    }

    fn raw_string(&mut self, prefix: usize) {
        let at = self.at;
        let hashes = self.rest()[..prefix].matches('#').count();
        let body_at = at + prefix;
        let close = format!("\"{}", "#".repeat(hashes));
        let len = self.text[body_at..]
            .find(&close)
            .unwrap_or(self.text.len() - body_at);
        self.literal(at, body_at, len, close.len(), true);
    }

    fn literal(&mut self, at: usize, body_at: usize, len: usize, close: usize, raw: bool) {
        let body = self.text[body_at..body_at + len].to_owned();
        self.literals.push(Literal { at, body, raw });
        self.tokens.push(Token {
            at,
            text: "\"".to_owned(),
        });
        self.at = (body_at + len + close).min(self.text.len());
    }
}

/// The length of `r"`, `br##"` and the like, if that is what begins here.
fn raw_prefix_len(rest: &str) -> Option<usize> {
    let letter = ["r", "br", "cr"]
        .into_iter()
        .find(|p| rest.starts_with(p) && rest[p.len()..].starts_with(['"', '#']))?;
    let hashes = rest[letter.len()..].find(|c| c != '#')?;
    let quote = letter.len() + hashes;
    rest[quote..].starts_with('"').then_some(quote + 1)
}

/// The length of `'x'`, or None for a lifetime.
fn char_literal_len(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}
