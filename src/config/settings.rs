//! The list of settings, read from the manual itself: names, defaults, first line of help.

use std::path::Path;
use std::sync::LazyLock;

use toml::{Table, Value};

use super::{Config, ConfigError, DEFAULTS, PREFIX, error};

/// Edits by which a name may differ from a known one and still be taken for its misspelling.
const EDITS_MAX: usize = 3;

/// One setting.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `grpc.listen`.
    pub key: String,
    /// `grpc-listen`.
    pub flag_name: String,
    /// As the manual has it.
    pub default: String,
    /// The comment above it, as one line.
    pub help: String,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Text,
    Whole,
    YesNo,
    Units,
}

impl Setting {
    /// `--grpc-listen`.
    pub fn flag(&self) -> String {
        format!("--{}", self.flag_name)
    }

    /// `RED_ENVELOPE_GRPC_LISTEN`.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('.', "_").to_uppercase())
    }

    /// Puts a flag's or a variable's text into the table.
    pub(super) fn put(&self, table: &mut Table, text: &str, from: &str) -> Result<(), ConfigError> {
        let expected = |what: &str| {
            ConfigError(format!(
                "{from} must be {what}, not {text:?}; the default is {}",
                self.default
            ))
        };
        let value = match self.shape {
            Shape::Text => Value::String(text.to_owned()),
            Shape::Whole => text
                .parse()
                .map(Value::Integer)
                .map_err(|_| expected("a whole number"))?,
            Shape::YesNo => text
                .parse()
                .map(Value::Boolean)
                .map_err(|_| expected("true or false"))?,
            Shape::Units => {
                let what = format!("a list such as {}", units_such_as(&self.key));
                units(text).ok_or_else(|| expected(&what))?
            }
        };
        let (section, name) = self.key.split_once('.').expect("keys are made with a dot");
        let section = table.get_mut(section).and_then(Value::as_table_mut);
        section
            .expect("every section is in the manual")
            .insert(name.to_owned(), value);
        Ok(())
    }
}

/// A list that a setting of units may have.
fn units_such_as(key: &str) -> &'static str {
    match key {
        "ledger.make_good_max" => "CNY=100000,JPY=2000",
        _ => "POINTS=0,STARS=2",
    }
}

fn units(text: &str) -> Option<Value> {
    let mut units = Table::new();
    for unit in text.split(',') {
        let (code, decimals) = unit.split_once('=')?;
        let decimals = decimals.trim().parse().ok()?;
        units.insert(code.trim().to_owned(), Value::Integer(decimals));
    }
    Some(Value::Table(units))
}

/// The manual as a table.
pub(super) fn default_table() -> Table {
    DEFAULTS.parse().expect("a test parses the manual")
}

/// Every setting, in the manual's order.
pub fn all() -> &'static [Setting] {
    static ALL: LazyLock<Vec<Setting>> = LazyLock::new(read_manual);
    &ALL
}

fn read_manual() -> Vec<Setting> {
    let table = default_table();
    let mut settings = Vec::new();
    let mut section = "";
    let mut help: Vec<&str> = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            help.push(comment);
        } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
            help.clear();
        } else if let Some((name, default)) = line.split_once(" = ") {
            let shape = match &table[section][name] {
                Value::Integer(_) => Shape::Whole,
                Value::Boolean(_) => Shape::YesNo,
                Value::Table(_) => Shape::Units,
                _ => Shape::Text,
            };
            let key = format!("{section}.{name}");
            settings.push(Setting {
                flag_name: key.replace(['.', '_'], "-"),
                key,
                default: default.to_owned(),
                help: std::mem::take(&mut help).join(" "),
                shape,
            });
        }
    }
    settings
}

/// Lays a file over the defaults.
pub(super) fn overlay(table: &mut Table, text: &str, path: &Path) -> Result<(), ConfigError> {
    let file: Table = text.parse().map_err(|e: toml::de::Error| {
        ConfigError(format!("{} is not TOML: {}", path.display(), e.message()))
    })?;
    for (section, values) in file {
        let known = table.get_mut(&section).and_then(Value::as_table_mut);
        let (Some(known), Value::Table(values)) = (known, values) else {
            let sections = default_table().into_iter().map(|(name, _)| name);
            return error(unknown(path, &section, sections.collect()));
        };
        for (name, value) in values {
            let key = format!("{section}.{name}");
            if !known.contains_key(&name) {
                let keys = all().iter().map(|s| s.key.clone());
                return error(unknown(path, &key, keys.collect()));
            }
            known.insert(name, value);
        }
    }
    Ok(())
}

fn unknown(path: &Path, key: &str, known: Vec<String>) -> String {
    let hint = match nearest(key, known.into_iter()) {
        Some(near) => format!("did you mean {near}?"),
        None => "red-envelope serve --print-default-config lists all keys".to_owned(),
    };
    format!("{}: the key {key} is unknown; {hint}", path.display())
}

/// The table as the program uses it.
pub(super) fn typed(table: Table) -> Result<Config, ConfigError> {
    // Section by section, so that the sentence can name the key.
    for setting in all() {
        let (section, name) = setting
            .key
            .split_once('.')
            .expect("keys are made with a dot");
        let fits = matches!(
            (setting.shape, &table[section][name]),
            (Shape::Text, Value::String(_))
                | (Shape::Whole, Value::Integer(_))
                | (Shape::YesNo, Value::Boolean(_))
                | (Shape::Units, Value::Table(_))
        );
        if !fits {
            return error(format!(
                "{} must look like its default, {}, not {}",
                setting.key, setting.default, table[section][name]
            ));
        }
        if let Some(text) = table[section][name].as_str() {
            super::stores::read(&setting.key, text)?;
        }
        if name == "listen"
            && table[section][name]
                .as_str()
                .is_none_or(|a| a.parse::<std::net::SocketAddr>().is_err())
        {
            return error(format!(
                "{} must be an IP address and a port such as {}, not {}",
                setting.key, setting.default, table[section][name]
            ));
        }
    }
    table
        .try_into()
        .map_err(|e: toml::de::Error| ConfigError(e.to_string().trim().to_owned()))
}

/// The name that is nearest, if it is near.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let measured = known.map(|candidate| (edits(name, &candidate), candidate));
    let (edits, candidate) = measured.min()?;
    (edits <= EDITS_MAX).then_some(candidate)
}

/// Levenshtein's distance. Names are below 100 bytes, so the square is small.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let changed = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
