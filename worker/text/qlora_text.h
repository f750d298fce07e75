// C ABI of the text crate: Hugging Face tokenizers and chat templates.
//
// Strings are UTF-8 with an explicit length, not NUL-terminated. Functions that
// can fail return 0 for success or another QLORA_ code, and then set *error to
// a message that the caller frees with qlora_text_free_string. Panics inside
// the crate are caught and become errors, and so does a null handle or text;
// `out` must not be null. Handles may be used by many threads
// at once (they are immutable).
#ifndef QLORA_TEXT_H_
#define QLORA_TEXT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct QloraTokenizer QloraTokenizer;
typedef struct QloraChatTemplate QloraChatTemplate;

enum {
  QLORA_OK = 0,
  // What was given is wrong.
  QLORA_ERROR = 1,
  // qlora_chat_template_render: the template was stopped at its bound of
  // memory, time or depth, now or in an earlier rendering.
  QLORA_STOPPED = 2,
  // qlora_chat_template_*: the system gives no thread now. The same call may
  // succeed later.
  QLORA_UNAVAILABLE = 3
};

typedef struct {
  char* data;
  size_t size;
} QloraString;

// ids[i] covers bytes [starts[i], ends[i]) of the text; special tokens that the
// post-processor added have starts[i] == ends[i].
typedef struct {
  uint32_t* ids;
  uint32_t* starts;
  uint32_t* ends;
  size_t size;
} QloraEncoding;

// Byte range [begin, end) of rendered text.
typedef struct {
  uint32_t begin;
  uint32_t end;
} QloraSpan;

// Which spans a rendering has to find.
enum {
  // None: the mask is not looked for, has_mask is 0 and mask_error empty.
  QLORA_MASK_NONE = 0,
  // Every assistant turn.
  QLORA_MASK_ASSISTANT = 1,
  // The last assistant turn only.
  QLORA_MASK_LAST = 2
};

// rendered: the text; spans: what assistant turns said (including what the
// template puts behind them, such as an end-of-turn marker), in order;
// has_mask: 0 if the template gives no way to know (then spans is empty and
// mask_error says why: never an all-zero mask without a word). A conversation
// without an assistant turn has a mask, of no spans.
typedef struct {
  QloraString rendered;
  QloraSpan* spans;
  size_t num_spans;
  int has_mask;
  QloraString mask_error;
} QloraRendered;

void qlora_text_free_string(QloraString* s);

// Loads the tokenizer.json at path. Truncation and padding that the file sets
// are switched off (the trainer decides).
int qlora_tokenizer_open(const char* path, size_t path_size,
                         QloraTokenizer** out, QloraString* error);
void qlora_tokenizer_free(QloraTokenizer* t);
// Size of the vocabulary with added tokens.
uint32_t qlora_tokenizer_vocab_size(const QloraTokenizer* t);
// Largest id + 1.
uint32_t qlora_tokenizer_id_bound(const QloraTokenizer* t);
// -1 if the token is unknown.
int64_t qlora_tokenizer_token_to_id(const QloraTokenizer* t, const char* token,
                                    size_t size);
int qlora_tokenizer_encode(const QloraTokenizer* t, const char* text,
                           size_t size, int add_special_tokens,
                           QloraEncoding* out, QloraString* error);
void qlora_encoding_free(QloraEncoding* e);
int qlora_tokenizer_decode(const QloraTokenizer* t, const uint32_t* ids,
                           size_t size, int skip_special_tokens,
                           QloraString* out, QloraString* error);

// Compiles a Jinja chat template. tokenizer_config is the JSON text of
// tokenizer_config.json (for bos_token and the like), may be empty. Templates
// are untrusted: a rendering is bounded in steps, recursion, size of output,
// memory (256 MiB and 16 times the input) and time (60 s), and sees nothing but
// its input. One that reaches the bound of memory or time, or whose values are
// nested too deep to be printed, leaves a sleeping thread with its memory
// behind, so every rendering after it is refused with QLORA_STOPPED too. So is
// the compiler bounded; a source has at most 256 KiB.
int qlora_chat_template_compile(const char* source, size_t source_size,
                                const char* tokenizer_config,
                                size_t tokenizer_config_size,
                                QloraChatTemplate** out, QloraString* error);
void qlora_chat_template_free(QloraChatTemplate* t);
// input: JSON object {"messages": [...], "tools"?: [...],
// "add_generation_prompt"?: bool, ...}; unknown keys are passed to the template
// as variables. `now` (seconds since 1970, UTC) serves strftime_now: the crate
// reads no clock. `mask` is one of QLORA_MASK_*: spans come from the template's
// {% generation %} blocks if it has them, else from renderings that end before
// and after each assistant turn, or that mark what it says (src/mask.rs).
int qlora_chat_template_render(const QloraChatTemplate* t, const char* input,
                               size_t input_size, int64_t now, int mask,
                               QloraRendered* out, QloraString* error);
void qlora_rendered_free(QloraRendered* r);

// Trains a byte-level BPE tokenizer on text files and writes it to the file
// out_path. special_tokens: JSON array of strings; they get the first ids. The
// file depends on nothing but the arguments.
int qlora_tokenizer_train_bpe(const char* const* files, size_t num_files,
                              uint32_t vocab_size, const char* special_tokens,
                              size_t special_tokens_size, const char* out_path,
                              size_t out_path_size, QloraString* error);

#ifdef __cplusplus
}
#endif
#endif  // QLORA_TEXT_H_
