//! Hugging Face tokenizer.json: load, encode, decode, train.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::{json, Value};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BpeTrainerBuilder, BPE};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper, TokenizerImpl};

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: u32,
    id_bound: u32,
}

pub struct Encoded {
    pub ids: Vec<u32>,
    pub starts: Vec<u32>,
    pub ends: Vec<u32>,
}

impl Tokenizer {
    pub fn open(path: &str) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("cannot read {path}: {e}"))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .or_else(|e| split_merges(&bytes).map_or(Err(e), tokenizers::Tokenizer::from_bytes))
            .map_err(|e| format!("{path} is not a valid tokenizer.json: {e}"))?;
        inner
            .with_truncation(None)
            .map_err(|e| format!("{path}: {e}"))?;
        inner.with_padding(None);
        let vocab = inner.get_vocab(true);
        let id_bound = vocab.values().max().map_or(0, |id| id.saturating_add(1));
        Ok(Self {
            vocab_size: vocab.len() as u32,
            id_bound,
            inner,
        })
    }

    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    pub fn id_bound(&self) -> u32 {
        self.id_bound
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, String> {
        if text.len() > u32::MAX as usize {
            return Err("a text of 4 GiB or more cannot be encoded at once".to_string());
        }
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(|e| format!("the tokenizer cannot encode the text: {e}"))?;
        let offsets = encoding.get_offsets();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            starts: offsets.iter().map(|o| o.0 as u32).collect(),
            ends: offsets.iter().map(|o| o.1 as u32).collect(),
        })
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|e| format!("the tokenizer cannot decode: {e}"))
    }
}

/// Older files write a merge as "LEFT RIGHT", which the library cannot read when
/// a part holds spaces itself. Writes such merges as pairs whose parts and sum
/// are in the vocabulary; None if that is not what is wrong with the file.
fn split_merges(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file: Value = serde_json::from_slice(bytes).ok()?;
    let model = file.get("model")?;
    let vocab = model.get("vocab")?.as_object()?;
    let split = |merge: &Value| {
        let merge = merge.as_str()?;
        merge.match_indices(' ').find_map(|(at, _)| {
            let (left, right) = (&merge[..at], &merge[at + 1..]);
            let known = |token: &str| vocab.contains_key(token);
            let fits = known(left) && known(right) && known(&format!("{left}{right}"));
            fits.then(|| json!([left, right]))
        })
    };
    let merges = model.get("merges")?.as_array()?;
    let merges: Option<Vec<Value>> = merges.iter().map(split).collect();
    file["model"]["merges"] = Value::Array(merges?);
    serde_json::to_vec(&file).ok()
}

/// Trains on the lines of `files` and writes a tokenizer.json with the special
/// tokens first, then the 256 bytes, then the merges.
pub fn train_bpe(
    files: &[String],
    vocab_size: u32,
    special_tokens: &str,
    out_path: &str,
) -> Result<(), String> {
    let special: Vec<String> = serde_json::from_str(special_tokens)
        .map_err(|e| format!("special_tokens is not a JSON array of strings: {e}"))?;
    let least = 256 + special.len();
    if (vocab_size as usize) < least {
        return Err(format!(
            "a vocabulary of {vocab_size} is too small: 256 bytes and {} special \
             tokens need at least {least}",
            special.len()
        ));
    }
    let mut lines = Vec::new();
    for path in files {
        read_lines(path, &mut lines)?;
    }
    if lines.is_empty() {
        return Err("there is no text to train a tokenizer on".to_string());
    }
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size as usize)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            special
                .iter()
                .map(|s| AddedToken::from(s.clone(), true))
                .collect(),
        )
        .build();
    let mut tokenizer = TokenizerImpl::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevelDecoder::default()));
    tokenizer
        .train(&mut trainer, lines.iter().map(String::as_str))
        .map_err(|e| format!("training the tokenizer failed: {e}"))?;
    tokenizer
        .save(out_path, true)
        .map_err(|e| format!("cannot write {out_path}: {e}"))
}

fn read_lines(path: &str, lines: &mut Vec<String>) -> Result<(), String> {
    let file = File::open(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let mut reader = BufReader::new(file);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => lines.push(line),
            Err(e) => return Err(format!("cannot read {path}: {e}")),
        }
    }
}
