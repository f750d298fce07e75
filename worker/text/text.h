// Tokenizers and chat templates of Hugging Face models, for C++ callers of the
// text crate. Objects are immutable after they are made: any number of threads
// may use one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/text/qlora_text.h"

namespace qlora::text {

// Token i covers bytes [starts[i], ends[i]) of the text; a special token that
// the post-processor added covers nothing.
struct Encoding {
  std::vector<int32_t> ids;
  std::vector<uint32_t> starts;
  std::vector<uint32_t> ends;
};

class Tokenizer {
 public:
  // Reads DIRECTORY/tokenizer.json; its truncation and padding are switched
  // off. NotFound if there is no such file, InvalidArgument if it is broken.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Open(
      const std::string& directory);

  const std::string& directory() const { return directory_; }
  // Number of tokens, added ones included.
  int64_t vocab_size() const;
  // Largest id + 1.
  int64_t id_bound() const;
  std::optional<int32_t> TokenToId(std::string_view token) const;

  // Special tokens that are written out in the text are recognized;
  // add_special_tokens puts in those of the post-processor (BOS and the like).
  // InvalidArgument if the text is not UTF-8.
  absl::StatusOr<Encoding> Encode(std::string_view text,
                                  bool add_special_tokens) const;
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens) const;

 private:
  struct Free {
    void operator()(QloraTokenizer* t) const { qlora_tokenizer_free(t); }
  };
  Tokenizer(std::string directory, QloraTokenizer* handle)
      : directory_(std::move(directory)), handle_(handle) {}

  std::string directory_;
  std::unique_ptr<QloraTokenizer, Free> handle_;
};

// Bytes [begin, end) of a rendering.
struct Span {
  uint32_t begin;
  uint32_t end;
};

enum class Mask { kNone, kAssistant, kLast };

struct Rendered {
  std::string text;
  // What the assistant says, in order. Empty without has_mask.
  std::vector<Span> spans;
  bool has_mask = false;
  // Why a mask that was asked for cannot be had.
  std::string mask_error;
};

class ChatTemplate {
 public:
  // source: Jinja; tokenizer_config: the text of tokenizer_config.json, or
  // empty. InvalidArgument if one of them cannot be parsed; Unavailable if the
  // system gives no thread for it.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Compile(
      std::string_view source, std::string_view tokenizer_config);

  // input: a JSON object with "messages" and further variables of the
  // template; now: what strftime_now goes by, in UTC. InvalidArgument if the
  // template refuses or fails; FailedPrecondition if it takes more memory or
  // time than it may, and from then on always; Unavailable if the system gives
  // no thread for it now. That there is no mask is not an error but
  // has_mask == false.
  absl::StatusOr<Rendered> Render(std::string_view input, Mask mask,
                                  absl::Time now) const;

 private:
  struct Free {
    void operator()(QloraChatTemplate* t) const { qlora_chat_template_free(t); }
  };
  explicit ChatTemplate(QloraChatTemplate* handle) : handle_(handle) {}

  std::unique_ptr<QloraChatTemplate, Free> handle_;
};

// What a model directory says about text.
struct ModelText {
  std::unique_ptr<Tokenizer> tokenizer;
  // Null if neither the job nor the model has one.
  std::unique_ptr<ChatTemplate> chat_template;
  // Jinja text of chat_template.
  std::string chat_template_source;
  // JSON: special_tokens_map.json, overridden by tokenizer_config.json.
  std::string tokenizer_config;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
};

// Opens the tokenizer of a model directory. The chat template is
// `chat_template` (Jinja text) if that is not empty, else chat_template.jinja,
// else that of tokenizer_config.json (of several, the one called "default"),
// else none, which is transformers' order. Errors name the file.
absl::StatusOr<ModelText> LoadModelText(const std::string& directory,
                                        std::string_view chat_template);

}  // namespace qlora::text
