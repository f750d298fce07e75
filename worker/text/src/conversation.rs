//! A conversation as chat templates take it.

use minijinja::value::Value;
use serde_json::Value as Json;

use crate::python::strftime;

/// Stands for the end-of-sequence token where a rendering marks it: a
/// noncharacter, which no text interchanges.
pub const EOS: char = '\u{fdd4}';

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

/// The input, taken apart once for several renderings.
pub struct Conversation {
    input: Json,
    variables: Vec<(String, Value)>,
    messages: Vec<Value>,
    pub assistant_turns: Vec<usize>,
    pub add_generation_prompt: bool,
}

impl Conversation {
    pub fn parse(input: &str, now: i64) -> Result<Self, String> {
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
    pub fn context(&self, part: &Part) -> Value {
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

/// True if a string in the value satisfies `found`.
pub fn any_string(value: &Json, found: &impl Fn(&str) -> bool) -> bool {
    match value {
        Json::String(s) => found(s),
        Json::Array(items) => items.iter().any(|v| any_string(v, found)),
        Json::Object(map) => map.iter().any(|(k, v)| found(k) || any_string(v, found)),
        _ => false,
    }
}
