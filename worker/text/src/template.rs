//! Chat templates: Jinja as transformers sets it up, and the assistant mask.

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value as Json;

use crate::bounded;
use crate::mask::{any_string, find_spans, EOS};
use crate::python::{strftime, to_json, to_str, JsonStyle};
use crate::Failure;

/// Instructions a rendering may take: thousands of messages, part of a second.
const FUEL: u64 = 3_000_000;
const MAX_OUTPUT: usize = 64 << 20;
/// Beside 16 times the input, for the values of a rendering.
const MEMORY: usize = 256 << 20;
/// For the renderings of one conversation, prefixes included.
const TIME: Duration = Duration::from_secs(60);
const NAME: &str = "chat_template";
const GENERATION: &str = "qlora_generation";
// Noncharacters: no text interchanges them, and input that holds them is
// refused when they would be looked for.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    None,
    Assistant,
    Last,
}

/// Byte range of the rendered text.
pub type Span = (usize, usize);

pub struct Rendered {
    pub text: String,
    /// Or why there is no mask.
    pub spans: Result<Vec<Span>, String>,
}

pub struct ChatTemplate {
    compiled: Arc<Compiled>,
    /// A rendering had to be left behind; there is to be no second one.
    stopped: AtomicBool,
}

pub struct Compiled {
    env: Environment<'static>,
    has_generation_tags: bool,
    /// Of tokenizer_config.json.
    eos_token: String,
}

/// What of a conversation is rendered.
#[derive(Clone)]
pub struct Part {
    /// So many of the first messages.
    pub count: usize,
    pub prompt: bool,
    /// A message that says something else.
    pub marked: Option<(usize, String)>,
    /// The end-of-sequence token is the mark EOS.
    pub mark_eos: bool,
}

impl Part {
    pub fn of(count: usize, prompt: bool) -> Self {
        Self {
            count,
            prompt,
            marked: None,
            mark_eos: false,
        }
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

impl ChatTemplate {
    pub fn compile(source: &str, tokenizer_config: &str) -> Result<Self, String> {
        let (source, has_generation_tags) = replace_generation_tags(source);
        let mut env = environment();
        let eos_token = add_special_tokens(&mut env, tokenizer_config)?;
        env.add_template_owned(NAME, source)
            .map_err(|e| format!("the chat template is not valid Jinja: {}", describe(&e)))?;
        Ok(Self {
            compiled: Arc::new(Compiled {
                env,
                has_generation_tags,
                eos_token,
            }),
            stopped: AtomicBool::new(false),
        })
    }

    pub fn render(&self, input: &str, now: i64, mask: Mask) -> Result<Rendered, Failure> {
        if self.stopped.load(Relaxed) {
            let message = "the chat template was stopped at another conversation";
            return Err(Failure::stopped(message.to_string()));
        }
        let compiled = self.compiled.clone();
        let input = input.to_string();
        let memory = MEMORY + input.len().saturating_mul(16);
        let rendered = bounded::run(memory, TIME, move || compiled.render(&input, now, mask));
        Ok(rendered.map_err(|why| {
            self.stopped.store(true, Relaxed);
            Failure::stopped(format!(
                "the chat template was stopped: {why}; use a simpler one \
                 (data.chat_template), or leave this conversation out"
            ))
        })??)
    }
}

impl Compiled {
    fn render(&self, input: &str, now: i64, mask: Mask) -> Result<Rendered, String> {
        let conversation = Conversation::parse(input, now)?;
        let everything = Part::of(conversation.count(), conversation.add_generation_prompt);
        let text = self.run(&conversation, &everything)?;
        if !self.has_generation_tags {
            let spans = find_spans(self, &conversation, &text, mask);
            return Ok(Rendered { text, spans });
        }
        if any_string(&conversation.input, &|s: &str| s.contains([OPEN, CLOSE])) {
            return Err("a message holds the noncharacter U+FDD0 or U+FDD1".to_string());
        }
        let (text, spans) = split_sentinels(&text);
        let spans = spans.and_then(|s| self.choose_tagged(&conversation, s, mask));
        Ok(Rendered { text, spans })
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

    fn choose_tagged(
        &self,
        conversation: &Conversation,
        spans: Vec<Span>,
        mask: Mask,
    ) -> Result<Vec<Span>, String> {
        if spans.is_empty() && !conversation.assistant_turns.is_empty() {
            return Err(
                "the template's {% generation %} blocks mark nothing in this conversation"
                    .to_string(),
            );
        }
        Ok(match mask {
            Mask::None => Vec::new(),
            Mask::Assistant => spans,
            Mask::Last => spans.last().copied().into_iter().collect(),
        })
    }

    /// The conversation may bring its own.
    pub fn eos_token<'a>(&'a self, conversation: &'a Conversation) -> &'a str {
        let own = conversation.input.get("eos_token").and_then(Json::as_str);
        own.unwrap_or(&self.eos_token)
    }
}

/// The input, taken apart once for several renderings.
pub struct Conversation {
    input: Json,
    variables: Vec<(String, Value)>,
    messages: Vec<Value>,
    pub assistant_turns: Vec<usize>,
    pub add_generation_prompt: bool,
}

impl Conversation {
    fn parse(input: &str, now: i64) -> Result<Self, String> {
        let input: Json =
            serde_json::from_str(input).map_err(|e| format!("the input is not JSON: {e}"))?;
        let object = input.as_object().ok_or("the input is not a JSON object")?;
        let messages = object
            .get("messages")
            .and_then(Json::as_array)
            .ok_or("the input has no array \"messages\"")?;
        let is_assistant = |m: &Json| m.get("role").and_then(Json::as_str) == Some("assistant");
        let assistant_turns = (0..messages.len()).filter(|i| is_assistant(&messages[*i]));
        let mut variables = vec![("strftime_now".to_string(), strftime_now(now))];
        for (key, value) in object {
            if key != "messages" && key != "add_generation_prompt" {
                variables.push((key.clone(), Value::from_serialize(value)));
            }
        }
        let prompt = object.get("add_generation_prompt").and_then(Json::as_bool);
        Ok(Self {
            variables,
            messages: messages.iter().map(Value::from_serialize).collect(),
            assistant_turns: assistant_turns.collect(),
            add_generation_prompt: prompt.unwrap_or(false),
            input,
        })
    }

    pub fn count(&self) -> usize {
        self.messages.len()
    }

    pub fn input(&self) -> &Json {
        &self.input
    }

    pub fn message(&self, index: usize) -> &Json {
        &self.input["messages"][index]
    }

    /// What a message says, if that is a plain string.
    pub fn content(&self, index: usize) -> Option<&str> {
        self.message(index).get("content").and_then(Json::as_str)
    }

    /// The variables of a rendering.
    fn context(&self, part: &Part) -> Value {
        let mut messages = self.messages[..part.count].to_vec();
        if let Some((index, content)) = &part.marked {
            let mut message = self.message(*index).clone();
            message["content"] = content.as_str().into();
            if let Some(place) = messages.get_mut(*index) {
                *place = Value::from_serialize(message);
            }
        }
        let mut own = vec![
            ("messages".to_string(), Value::from(messages)),
            ("add_generation_prompt".to_string(), part.prompt.into()),
        ];
        if part.mark_eos {
            own.push(("eos_token".to_string(), EOS.to_string().into()));
        }
        Value::from_iter(self.variables.iter().cloned().chain(own))
    }
}

fn strftime_now(now: i64) -> Value {
    Value::from_function(move |format: &str| strftime(now, format))
}

/// Rendered text without the sentinels, and the ranges they enclosed.
fn split_sentinels(text: &str) -> (String, Result<Vec<Span>, String>) {
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
