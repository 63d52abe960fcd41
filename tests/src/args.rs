//! Reads `--name value` and `--flag` options of the test programs.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The options of one program run. An option nobody declared is an error, so that a misspelt one never goes unnoticed.
pub struct Args {
    values: BTreeMap<String, String>,
    flags: Vec<String>,
}

/// The exit status of a program, whose failure is a line of its own.
pub fn exit_code(program: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    /// Reads the process's arguments; `with_value` and `flags` are all the options that exist.
    pub fn from_env(with_value: &[&str], flags: &[&str]) -> Result<Self> {
        Self::parse(std::env::args().skip(1), with_value, flags)
    }

    fn parse(arguments: impl Iterator<Item = String>, with_value: &[&str], flags: &[&str]) -> Result<Self> {
        let mut args = Args { values: BTreeMap::new(), flags: Vec::new() };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--") else { bail!("unexpected argument {argument:?}") };
            let (name, inline) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (option, None),
            };
            if flags.contains(&name) && inline.is_none() {
                args.flags.push(name.to_string());
            } else if with_value.contains(&name) {
                let value = inline.or_else(|| arguments.next()).with_context(|| format!("--{name} needs a value"))?;
                args.values.insert(name.to_string(), value);
            } else {
                bail!("unknown option --{name}; known: {} {}", with_value.join(" "), flags.join(" "));
            }
        }
        Ok(args)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The option's value, or `default` when it was not given.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        match self.values.get(name) {
            None => Ok(default),
            Some(value) => value.parse().ok().with_context(|| format!("--{name} {value}: not a valid value")),
        }
    }

    /// The comma-separated items of an option; empty when it was not given.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.text(name).map(|list| list.split(',').map(|item| item.trim().to_string()).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args> {
        Args::parse(arguments.iter().map(|argument| argument.to_string()), &["rounds", "only"], &["quick"])
    }

    #[test]
    fn reads_values_flags_and_lists() {
        let args = parse(&["--rounds", "7", "--quick", "--only=a,b"]).unwrap();
        assert_eq!(args.get("rounds", 1).unwrap(), 7);
        assert!(args.flag("quick"));
        assert_eq!(args.list("only"), ["a", "b"]);
        assert_eq!(args.get("missing", 3).unwrap(), 3);
    }

    #[test]
    fn refuses_what_nobody_declared() {
        assert!(parse(&["--round", "7"]).is_err());
        assert!(parse(&["rounds"]).is_err());
        assert!(parse(&["--rounds"]).is_err());
        assert!(parse(&["--rounds", "x"]).unwrap().get("rounds", 1).is_err());
    }
}
