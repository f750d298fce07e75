//! Chat templates: the rendered text, and where the assistant speaks in it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use crate::bounded::{self, Error};
use crate::conversation::{any_string, Conversation, Part};
use crate::jinja::{split_sentinels, Compiled, Span, CLOSE, OPEN};
use crate::mask::{find_spans, Mask};
use crate::Failure;

/// A parser may need a level of the stack for each byte. The largest templates
/// of known models have a tenth.
const MAX_SOURCE: usize = 256 << 10;
/// Beside 16 times the input, for the values of a rendering.
const MEMORY: usize = 256 << 20;
/// For the renderings of one conversation, prefixes included.
const TIME: Duration = Duration::from_secs(60);

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

impl ChatTemplate {
    pub fn compile(source: &str, tokenizer_config: &str) -> Result<Self, Failure> {
        if source.len() > MAX_SOURCE {
            let message = format!(
                "the chat template has {} bytes; at most {MAX_SOURCE} are read",
                source.len()
            );
            return Err(message.into());
        }
        let (source, config) = (source.to_string(), tokenizer_config.to_string());
        let memory = MEMORY + config.len().saturating_mul(16);
        let compiled = bounded::run(memory, TIME, move || Compiled::new(&source, &config))
            .map_err(|error| match error {
                Error::Stopped(why) => {
                    format!("the chat template cannot be compiled: {why}").into()
                }
                Error::NoThread(why) => no_thread(&why),
            })??;
        Ok(Self {
            compiled: Arc::new(compiled),
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
        let rendered = bounded::run(memory, TIME, move || render(&compiled, &input, now, mask));
        Ok(rendered.map_err(|error| match error {
            Error::Stopped(why) => {
                self.stopped.store(true, Relaxed);
                Failure::stopped(format!(
                    "the chat template was stopped: {why}; use a simpler one \
                     (data.chat_template), or leave this conversation out"
                ))
            }
            Error::NoThread(why) => no_thread(&why),
        })??)
    }
}

fn no_thread(why: &std::io::Error) -> Failure {
    Failure::unavailable(format!(
        "the system gives no thread of {} MiB of address space to the chat template: {why}; \
         run less on this machine, or raise its limits (ulimit -u and -v, pids.max, TasksMax)",
        bounded::STACK >> 20
    ))
}

fn render(compiled: &Compiled, input: &str, now: i64, mask: Mask) -> Result<Rendered, String> {
    let conversation = Conversation::parse(input, now)?;
    let everything = Part::of(conversation.count(), conversation.add_generation_prompt);
    let text = compiled.run(&conversation, &everything)?;
    if !compiled.has_generation_tags {
        let spans = find_spans(compiled, &conversation, &text, mask);
        return Ok(Rendered { text, spans });
    }
    if any_string(conversation.input(), &|s: &str| s.contains([OPEN, CLOSE])) {
        return Err("a message holds the noncharacter U+FDD0 or U+FDD1".to_string());
    }
    let (text, spans) = split_sentinels(&text);
    let spans = spans.and_then(|s| choose_tagged(&conversation, s, mask));
    Ok(Rendered { text, spans })
}

fn choose_tagged(
    conversation: &Conversation,
    spans: Vec<Span>,
    mask: Mask,
) -> Result<Vec<Span>, String> {
    if spans.is_empty() && !conversation.assistant_turns.is_empty() {
        return Err(
            "the template's {% generation %} blocks mark nothing in this conversation".to_string(),
        );
    }
    Ok(match mask {
        Mask::None => Vec::new(),
        Mask::Assistant => spans,
        Mask::Last => spans.last().copied().into_iter().collect(),
    })
}
