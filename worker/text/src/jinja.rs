//! Jinja as transformers sets it up for chat templates.

use std::fmt::Write as _;
use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value as Json;

use crate::conversation::{Conversation, Part};
use crate::python::{to_json, to_str, JsonStyle};

/// Instructions a rendering may take: thousands of messages, part of a second.
const FUEL: u64 = 3_000_000;
const MAX_OUTPUT: usize = 64 << 20;
const NAME: &str = "chat_template";
const GENERATION: &str = "qlora_generation";
// Sentinels around a generation block. Noncharacters: no text interchanges
// them, and input that holds them is refused when they would be looked for.
pub const OPEN: char = '\u{fdd0}';
pub const CLOSE: char = '\u{fdd1}';

/// Byte range of the rendered text.
pub type Span = (usize, usize);

pub struct Compiled {
    env: Environment<'static>,
    pub has_generation_tags: bool,
    /// Of tokenizer_config.json.
    eos_token: String,
}

impl Compiled {
    pub fn new(source: &str, tokenizer_config: &str) -> Result<Self, String> {
        let (source, has_generation_tags) = replace_generation_tags(source);
        let mut env = environment();
        let eos_token = add_special_tokens(&mut env, tokenizer_config)?;
        env.add_template_owned(NAME, source)
            .map_err(|e| format!("the chat template is not valid Jinja: {}", describe(&e)))?;
        Ok(Self {
            env,
            has_generation_tags,
            eos_token,
        })
    }

    pub fn run(&self, conversation: &Conversation, part: &Part) -> Result<String, String> {
        let template = self.env.get_template(NAME).map_err(|e| describe(&e))?;
        let mut out = Bounded(Vec::new());
        template
            .render_captured_to(conversation.context(part), &mut out)
            .map_err(|e| match raised_message(&e) {
                Some(message) => format!("the chat template refuses the conversation: {message}"),
                None => format!("the chat template failed: {}", describe(&e)),
            })?;
        String::from_utf8(out.0).map_err(|_| "the rendering is not UTF-8".to_string())
    }

    /// The conversation may bring its own.
    pub fn eos_token<'a>(&'a self, conversation: &'a Conversation) -> &'a str {
        let own = conversation.input().get("eos_token").and_then(Json::as_str);
        own.unwrap_or(&self.eos_token)
    }
}

/// Marks an error as the template's own raise_exception.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

/// Rendered text without the sentinels, and the ranges they enclosed.
pub fn split_sentinels(text: &str) -> (String, Result<Vec<Span>, String>) {
    let mut plain = String::with_capacity(text.len());
    let (mut spans, mut open, mut balanced) = (Vec::new(), None, true);
    for c in text.chars() {
        match c {
            OPEN => {
                balanced &= open.is_none();
                open = Some(plain.len());
            }
            CLOSE => match open.take() {
                Some(begin) => spans.push((begin, plain.len())),
                None => balanced = false,
            },
            c => plain.push(c),
        }
    }
    if balanced && open.is_none() {
        (plain, Ok(spans))
    } else {
        let why = "the template cuts or nests its {% generation %} blocks";
        (plain, Err(why.to_string()))
    }
}

/// Turns `{% generation %}` into a filter block: a block tag like it, so that
/// white space is trimmed alike. True if there was one.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let (mut rest, mut found) = (source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        for (name, by) in [("endgeneration", "endfilter"), ("generation", "filter ")] {
            let Some(after) = inner.strip_prefix(name) else {
                continue;
            };
            let close = after.trim_start();
            if close.starts_with("%}") || close.starts_with("-%}") || close.starts_with("+%}") {
                out.push_str(&tag[..tag.len() - inner.len()]);
                out.push_str(by);
                if name == "generation" {
                    out.push_str(GENERATION);
                }
                rest = after;
                found = true;
                break;
            }
        }
    }
    out.push_str(rest);
    (out, found)
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&to_str(value)).map_err(Error::from),
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| to_str(value));
    env.add_filter(GENERATION, |body: &str| format!("{OPEN}{body}{CLOSE}"));
    env.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String
        )
    });
    env.add_function(
        "raise_exception",
        |message: &Value| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, to_str(message)).with_source(Raised))
        },
    );
    env
}

fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(n) if !n.is_none() => Some(usize::try_from(n)?),
        _ => None,
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let mut style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item_separator: comma.to_string(),
        key_separator: ": ".to_string(),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    if let Some(pair) = kwargs.get::<Option<Value>>("separators")? {
        if !pair.is_none() {
            style.item_separator = to_str(&pair.get_item_by_index(0)?);
            style.key_separator = to_str(&pair.get_item_by_index(1)?);
        }
    }
    kwargs.assert_all_used()?;
    to_json(value, &style)
}

/// bos_token and the like, written as strings or as {"content": ...}. Gives the
/// end-of-sequence token, or nothing.
fn add_special_tokens(env: &mut Environment<'static>, config: &str) -> Result<String, String> {
    let mut eos = String::new();
    if config.is_empty() {
        return Ok(eos);
    }
    let config: Json = serde_json::from_str(config)
        .map_err(|e| format!("tokenizer_config.json is not valid JSON: {e}"))?;
    let Some(config) = config.as_object() else {
        return Err("tokenizer_config.json is not a JSON object".to_string());
    };
    for (key, value) in config {
        let token = value.get("content").unwrap_or(value).as_str();
        if let (true, Some(token)) = (key.ends_with("_token"), token) {
            env.add_global(key.clone(), token);
            if key == "eos_token" {
                eos = token.to_string();
            }
        }
    }
    if let Some(Json::Array(more)) = config.get("additional_special_tokens") {
        let content = |t: &Json| t.get("content").unwrap_or(t).as_str().map(str::to_string);
        let more: Vec<String> = more.iter().filter_map(content).collect();
        env.add_global("additional_special_tokens", more);
    }
    Ok(eos)
}

fn raised_message(error: &Error) -> Option<String> {
    let mut message = error.detail();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if source.is::<Raised>() {
            return Some(message.unwrap_or_default().to_string());
        }
        message = source.downcast_ref::<Error>().and_then(Error::detail);
        next = source.source();
    }
    None
}

/// The error with its causes, on one line.
fn describe(error: &Error) -> String {
    let mut out = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        let _ = write!(out, ": {source}");
        next = source.source();
    }
    out
}

struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendering is longer than 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
