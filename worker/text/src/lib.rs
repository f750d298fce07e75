//! The C ABI of qlora_text.h. Every entry catches panics and turns them into
//! errors; what crosses the boundary is owned by the caller and freed by the
//! functions here.

mod bounded;
mod conversation;
mod jinja;
mod mask;
pub mod python;
pub mod template;
pub mod tokenizer;

use std::os::raw::{c_char, c_int};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::null_mut;

use mask::Mask;
use template::ChatTemplate;
use tokenizer::Tokenizer;

#[repr(C)]
pub struct QloraString {
    data: *mut c_char,
    size: usize,
}

#[repr(C)]
pub struct QloraEncoding {
    ids: *mut u32,
    starts: *mut u32,
    ends: *mut u32,
    size: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QloraSpan {
    begin: u32,
    end: u32,
}

#[repr(C)]
pub struct QloraRendered {
    rendered: QloraString,
    spans: *mut QloraSpan,
    num_spans: usize,
    has_mask: c_int,
    mask_error: QloraString,
}

/// What an entry returns but 0, with its message.
pub struct Failure {
    code: c_int,
    message: String,
}

impl Failure {
    /// QLORA_STOPPED.
    pub fn stopped(message: String) -> Self {
        Self { code: 2, message }
    }

    /// QLORA_UNAVAILABLE.
    pub fn unavailable(message: String) -> Self {
        Self { code: 3, message }
    }
}

/// QLORA_ERROR.
impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: 1, message }
    }
}

/// Gives a boxed slice to C as pointer and length.
fn leak<T>(values: Vec<T>) -> (*mut T, usize) {
    let size = values.len();
    (Box::into_raw(values.into_boxed_slice()) as *mut T, size)
}

/// Takes back what `leak` gave away.
unsafe fn unleak<T>(data: *mut T, size: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
            data, size,
        )));
    }
}

fn to_c_string(text: String) -> QloraString {
    let (data, size) = leak(text.into_bytes());
    QloraString {
        data: data as *mut c_char,
        size,
    }
}

unsafe fn free_c_string(s: &mut QloraString) {
    unleak(s.data as *mut u8, s.size);
    s.data = null_mut();
    s.size = 0;
}

/// Panics for null, which the entries turn into an error.
unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        assert!(!data.is_null(), "a null pointer with a size of {size}");
        std::slice::from_raw_parts(data, size)
    }
}

/// Panics for null.
unsafe fn handle<'a, T>(t: *const T) -> &'a T {
    t.as_ref().expect("the handle is null")
}

unsafe fn text<'a>(data: *const c_char, size: usize, what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(slice(data as *const u8, size))
        .map_err(|e| format!("{what} is not UTF-8 at byte {}", e.valid_up_to()))
}

/// Runs `body` and reports its error, or its panic, through `error`.
fn guarded(error: *mut QloraString, body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let what = payload
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown panic".to_string());
            format!("the text library failed: {what}").into()
        }
    };
    if !error.is_null() {
        unsafe { *error = to_c_string(failure.message) };
    }
    failure.code
}

/// For entries that cannot report an error.
fn guarded_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

#[no_mangle]
pub unsafe extern "C" fn qlora_text_free_string(s: *mut QloraString) {
    guarded_or((), || {
        if !s.is_null() {
            free_c_string(&mut *s);
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_open(
    path: *const c_char,
    path_size: usize,
    out: *mut *mut Tokenizer,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let tokenizer = Tokenizer::open(text(path, path_size, "the path")?)?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_free(t: *mut Tokenizer) {
    guarded_or((), || {
        if !t.is_null() {
            drop(Box::from_raw(t));
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_vocab_size(t: *const Tokenizer) -> u32 {
    guarded_or(0, || handle(t).vocab_size())
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_id_bound(t: *const Tokenizer) -> u32 {
    guarded_or(0, || handle(t).id_bound())
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_token_to_id(
    t: *const Tokenizer,
    token: *const c_char,
    size: usize,
) -> i64 {
    guarded_or(-1, || match text(token, size, "the token") {
        Ok(token) => handle(t).token_to_id(token).map_or(-1, i64::from),
        Err(_) => -1,
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_encode(
    t: *const Tokenizer,
    input: *const c_char,
    size: usize,
    add_special_tokens: c_int,
    out: *mut QloraEncoding,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let input = text(input, size, "the text")?;
        let encoded = handle(t).encode(input, add_special_tokens != 0)?;
        let (ids, size) = leak(encoded.ids);
        *out = QloraEncoding {
            ids,
            starts: leak(encoded.starts).0,
            ends: leak(encoded.ends).0,
            size,
        };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_encoding_free(e: *mut QloraEncoding) {
    guarded_or((), || {
        if let Some(e) = e.as_mut() {
            unleak(e.ids, e.size);
            unleak(e.starts, e.size);
            unleak(e.ends, e.size);
            e.ids = null_mut();
            e.starts = null_mut();
            e.ends = null_mut();
            e.size = 0;
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_decode(
    t: *const Tokenizer,
    ids: *const u32,
    size: usize,
    skip_special_tokens: c_int,
    out: *mut QloraString,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let decoded = handle(t).decode(slice(ids, size), skip_special_tokens != 0)?;
        *out = to_c_string(decoded);
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_chat_template_compile(
    source: *const c_char,
    source_size: usize,
    tokenizer_config: *const c_char,
    tokenizer_config_size: usize,
    out: *mut *mut ChatTemplate,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let source = text(source, source_size, "the chat template")?;
        let config = text(
            tokenizer_config,
            tokenizer_config_size,
            "tokenizer_config.json",
        )?;
        *out = Box::into_raw(Box::new(ChatTemplate::compile(source, config)?));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_chat_template_free(t: *mut ChatTemplate) {
    guarded_or((), || {
        if !t.is_null() {
            drop(Box::from_raw(t));
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_chat_template_render(
    t: *const ChatTemplate,
    input: *const c_char,
    input_size: usize,
    now: i64,
    mask: c_int,
    out: *mut QloraRendered,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let input = text(input, input_size, "the conversation")?;
        let mask = match mask {
            0 => Mask::None,
            1 => Mask::Assistant,
            2 => Mask::Last,
            other => return Err(format!("{other} is no QLORA_MASK_ value").into()),
        };
        let rendered = handle(t).render(input, now, mask)?;
        let (spans, mask_error) = match rendered.spans {
            Ok(spans) => (Some(spans), String::new()),
            Err(why) => (None, why),
        };
        let has_mask = c_int::from(spans.is_some() && mask != Mask::None);
        let spans = spans.unwrap_or_default();
        let spans = spans.iter().map(|s| QloraSpan {
            begin: s.0 as u32,
            end: s.1 as u32,
        });
        let (spans, num_spans) = leak(spans.collect());
        *out = QloraRendered {
            rendered: to_c_string(rendered.text),
            spans,
            num_spans,
            has_mask,
            mask_error: to_c_string(mask_error),
        };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_rendered_free(r: *mut QloraRendered) {
    guarded_or((), || {
        if let Some(r) = r.as_mut() {
            free_c_string(&mut r.rendered);
            free_c_string(&mut r.mask_error);
            unleak(r.spans, r.num_spans);
            r.spans = null_mut();
            r.num_spans = 0;
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn qlora_tokenizer_train_bpe(
    files: *const *const c_char,
    num_files: usize,
    vocab_size: u32,
    special_tokens: *const c_char,
    special_tokens_size: usize,
    out_path: *const c_char,
    out_path_size: usize,
    error: *mut QloraString,
) -> c_int {
    guarded(error, || {
        let mut paths = Vec::new();
        for file in slice(files, num_files) {
            let path = std::ffi::CStr::from_ptr(*file).to_str();
            let path = path.map_err(|_| "a file name is not UTF-8".to_string())?;
            paths.push(path.to_string());
        }
        let special = text(special_tokens, special_tokens_size, "special_tokens")?;
        let out = text(out_path, out_path_size, "the output path")?;
        Ok(tokenizer::train_bpe(&paths, vocab_size, special, out)?)
    })
}
