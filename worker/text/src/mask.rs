//! Where the assistant speaks in a rendering whose template has no
//! `{% generation %}` blocks.
//!
//! A turn begins where the conversation before it, rendered with a generation
//! prompt, ends, and it ends where the conversation up to it ends, as long as
//! these are prefixes of the whole. Templates that end a conversation otherwise
//! than a turn, or drop the reasoning of earlier turns, have no such prefixes.
//! There the places are found by marks: noncharacters around what a message
//! says, and in place of the end-of-sequence token. A marked rendering counts
//! only if it is the unmarked one but for the marks. What stays in doubt is
//! refused.

use crate::conversation::{any_string, Conversation, Part, EOS};
use crate::jinja::{Compiled, Span};

// Noncharacters: no text interchanges them.
const FROM: char = '\u{fdd2}';
const TO: char = '\u{fdd3}';

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    None,
    Assistant,
    Last,
}

/// The spans of the turns that `mask` asks for, in order; or why not.
pub fn find_spans(
    compiled: &Compiled,
    conversation: &Conversation,
    whole: &str,
    mask: Mask,
) -> Result<Vec<Span>, String> {
    let turns = &conversation.assistant_turns;
    let turns = match mask {
        Mask::None => &[],
        Mask::Assistant => &turns[..],
        Mask::Last => &turns[turns.len().saturating_sub(1)..],
    };
    let mut finder = Finder {
        compiled,
        conversation,
        whole,
        ends: None,
    };
    let mut spans: Vec<Span> = Vec::with_capacity(turns.len());
    for &turn in turns {
        let begin = finder.begin(turn)?;
        let end = finder.end(turn)?;
        if end < begin || spans.last().is_some_and(|s| begin < s.1) {
            return Err(refusal(turn, "ends before its generation prompt"));
        }
        spans.push((begin, end));
    }
    Ok(spans)
}

fn refusal(turn: usize, what: &str) -> String {
    format!(
        "the template has no {{% generation %}} blocks and assistant message {turn} {what}, so \
         the assistant's part of the text is unknown; put {{% generation %}} blocks into the \
         template (data.chat_template), or set data.loss_on to last or all"
    )
}

/// What became of the end of a message's content in the whole.
#[derive(Clone, Copy)]
enum End {
    At(usize),
    Dropped,
    Unknown,
}

/// A rendering with marks around what a message says. Without them it is the
/// plain rendering.
struct Marked {
    text: String,
    /// What the message says before FROM.
    skipped: String,
}

struct Finder<'a> {
    compiled: &'a Compiled,
    conversation: &'a Conversation,
    whole: &'a str,
    /// Of each message, filled when first needed.
    ends: Option<Vec<End>>,
}

impl Finder<'_> {
    fn begin(&mut self, turn: usize) -> Result<usize, String> {
        let prompted = self.run(&Part::of(turn, true));
        if let Ok(part) = &prompted {
            if self.whole.starts_with(part) {
                return Ok(part.len());
            }
        }
        self.marked_begin(turn).ok_or_else(|| match prompted {
            Ok(_) => refusal(
                turn,
                "begins otherwise than the template's generation prompt does",
            ),
            Err(e) => refusal(turn, &format!("cannot be rendered apart ({e})")),
        })
    }

    fn end(&self, turn: usize) -> Result<usize, String> {
        let part = self
            .run(&Part::of(turn + 1, false))
            .map_err(|e| refusal(turn, &format!("cannot be rendered apart ({e})")))?;
        if self.whole.starts_with(&part) {
            return Ok(part.len());
        }
        self.marked_end(turn)
            .ok_or_else(|| refusal(turn, "is rendered otherwise when more messages follow"))
    }

    /// Behind the last generation prompt between the message before and what
    /// the turn says; or, if the turn begins otherwise, where it says it.
    fn marked_begin(&mut self, turn: usize) -> Option<usize> {
        let marked = self.marked(&self.everything(), turn)?;
        let to = self.place(&marked, TO)?;
        let from = self.place(&marked, FROM);
        let before = self.end_before(turn, to);
        let gap = before.and_then(|before| self.whole.get(before..from.unwrap_or(to)));
        // Reasoning that the text has would be left out of the span.
        let skipped = marked.skipped.replace(THINK, "").replace(THOUGHT, "");
        let skipped = skipped.trim();
        if !skipped.is_empty() && gap.is_none_or(|gap| gap.contains(skipped)) {
            return None;
        }
        let prompt = self.generation_prompt(turn);
        let prompted = before
            .zip(gap)
            .zip(prompt)
            .and_then(|((before, gap), prompt)| {
                gap.rfind(&prompt).map(|at| before + at + prompt.len())
            });
        prompted.or(from)
    }

    /// What follows the turn's content both in the whole and where the
    /// conversation ends there belongs to the turn. In the latter nothing but
    /// the end of the sequence may come behind it.
    fn marked_end(&self, turn: usize) -> Option<usize> {
        let whole = self.marked(&self.everything(), turn)?.text;
        let alone = self.marked(&Part::of(turn + 1, false), turn)?.text;
        let (_, in_whole) = whole.split_once(TO)?;
        let (_, behind) = alone.split_once(TO)?;
        let common = common_prefix(in_whole, behind);
        let rest = &behind[common..];
        let end = whole.len() - in_whole.len() + common;
        (rest.is_empty() || rest.starts_with(EOS)).then(|| self.unmark(&whole[..end]).len())
    }

    /// What a generation prompt adds to the messages before the turn; none if
    /// the turn itself says it.
    fn generation_prompt(&self, turn: usize) -> Option<String> {
        let part = |prompt| Part {
            mark_eos: true,
            ..Part::of(turn, prompt)
        };
        let with = self.run(&part(true)).ok()?;
        let without = self.run(&part(false)).ok()?;
        let prompt = self.unmark(&with[common_prefix(&with, &without)..]);
        let said = any_string(self.conversation.message(turn), &|s: &str| {
            s.contains(&prompt)
        });
        (!prompt.is_empty() && !said).then_some(prompt)
    }

    /// Where the nearest message before the turn has said what it says; none if
    /// that cannot be told for one of them.
    fn end_before(&mut self, turn: usize, to: usize) -> Option<usize> {
        if self.ends.is_none() {
            let count = self.conversation.count();
            self.ends = Some((0..count).map(|m| self.content_end(m)).collect());
        }
        let mut nearest = 0;
        for end in &self.ends.as_ref()?[..turn] {
            match *end {
                End::At(at) if at <= to => nearest = nearest.max(at),
                End::At(_) | End::Unknown => return None,
                End::Dropped => {}
            }
        }
        Some(nearest)
    }

    fn content_end(&self, message: usize) -> End {
        let Some(marked) = self.marked(&self.everything(), message) else {
            return End::Unknown;
        };
        match self.place(&marked, TO) {
            Some(at) => End::At(at),
            None if marked.text.contains(FROM) => End::Unknown,
            None => End::Dropped,
        }
    }

    /// Marks as early in the content as the template leaves them.
    fn marked(&self, part: &Part, message: usize) -> Option<Marked> {
        if any_string(self.conversation.input(), &|s: &str| {
            s.contains([FROM, TO, EOS])
        }) {
            return None;
        }
        let content = self.conversation.content(message)?;
        let plain = self.run(part).ok()?;
        let mut without_from = None;
        for (from, to) in placements(content) {
            let (skipped, said, rest) = (&content[..from], &content[from..to], &content[to..]);
            let text = self.run(&Part {
                mark_eos: true,
                marked: Some((message, format!("{skipped}{FROM}{said}{TO}{rest}"))),
                ..part.clone()
            });
            let Ok(text) = text else { continue };
            let once = text.matches(FROM).count() <= 1 && text.matches(TO).count() <= 1;
            if !once || self.unmark(&text) != plain {
                continue;
            }
            let found = text.contains(FROM);
            let marked = Marked {
                text,
                skipped: skipped.to_string(),
            };
            if found {
                return Some(marked);
            }
            without_from.get_or_insert(marked);
        }
        without_from
    }

    fn run(&self, part: &Part) -> Result<String, String> {
        self.compiled.run(self.conversation, part)
    }

    fn everything(&self) -> Part {
        let prompt = self.conversation.add_generation_prompt;
        Part::of(self.conversation.count(), prompt)
    }

    /// The place of a mark in the plain text.
    fn place(&self, marked: &Marked, mark: char) -> Option<usize> {
        let (before, _) = marked.text.split_once(mark)?;
        Some(self.unmark(before).len())
    }

    fn unmark(&self, text: &str) -> String {
        let eos = self.compiled.eos_token(self.conversation);
        text.replace([FROM, TO], "").replace(EOS, eos)
    }
}

/// Where FROM and TO may stand, earliest first: around all, within the white
/// space, and behind the tags of reasoning that a template moves or drops.
fn placements(content: &str) -> Vec<Span> {
    let end = content.trim_end().len();
    let start = content.len() - content.trim_start().len();
    let mut places = vec![(0, content.len()), (start.min(end), end)];
    let tags = [
        content.find(THINK).map(|at| at + THINK.len()),
        content.rfind(THOUGHT).map(|at| at + THOUGHT.len()),
    ];
    for from in tags.into_iter().flatten() {
        let rest = &content[from..];
        let said = from + rest.len() - rest.trim_start().len();
        for place in [from, said.min(end)] {
            places.push((place, content.len()));
            places.push((place.min(end), end));
        }
    }
    places
}

/// Bytes, whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let pairs = a.chars().zip(b.chars());
    pairs
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x.len_utf8())
        .sum()
}
