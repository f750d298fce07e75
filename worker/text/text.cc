#include "worker/text/text.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"

namespace qlora::text {
namespace {

using Json = nlohmann::json;

// The largest known tokenizer_config.json has a tenth of it.
constexpr size_t kMaxConfigBytes = 16 << 20;

std::string Take(QloraString* s) {
  std::string out(s->data, s->size);
  qlora_text_free_string(s);
  return out;
}

absl::Status ToStatus(int code, QloraString* error) {
  switch (code) {
    case QLORA_OK:
      return absl::OkStatus();
    case QLORA_STOPPED:
      return absl::FailedPreconditionError(Take(error));
    case QLORA_UNAVAILABLE:
      return absl::UnavailableError(Take(error));
    default:
      return absl::InvalidArgumentError(Take(error));
  }
}

// A special token is a string or {"content": string}.
std::string TokenText(const Json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) return "";
  const Json& value =
      it->is_object() && it->contains("content") ? (*it)["content"] : *it;
  return value.is_string() ? value.get<std::string>() : "";
}

// "chat_template" is a string or a list of {"name", "template"}.
std::string TemplateOf(const Json& config) {
  const auto it = config.find("chat_template");
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return "";
  std::string first;
  for (const Json& entry : *it) {
    if (!entry.is_object() || !entry.contains("template") ||
        !entry["template"].is_string()) {
      continue;
    }
    const std::string source = entry["template"].get<std::string>();
    if (entry.value("name", Json()) == "default") return source;
    if (first.empty()) first = source;
  }
  return first;
}

// The file's text, or empty if there is none.
absl::StatusOr<std::string> ReadOptional(const std::string& path) {
  absl::StatusOr<std::string> content = ReadFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(content.status())) return std::string();
  return content;
}

// The file's object, empty if there is no file.
absl::StatusOr<Json> ReadObject(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, ReadOptional(path));
  if (content.empty()) return Json::object();
  return ParseJsonObject(content, path, kMaxConfigBytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Open(
    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/tokenizer.json");
  RETURN_IF_ERROR(ReadFile(path).status());
  QloraTokenizer* handle = nullptr;
  QloraString error = {};
  RETURN_IF_ERROR(ToStatus(
      qlora_tokenizer_open(path.data(), path.size(), &handle, &error), &error));
  return std::unique_ptr<Tokenizer>(new Tokenizer(directory, handle));
}

int64_t Tokenizer::vocab_size() const {
  return qlora_tokenizer_vocab_size(handle_.get());
}

int64_t Tokenizer::id_bound() const {
  return qlora_tokenizer_id_bound(handle_.get());
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const int64_t id =
      qlora_tokenizer_token_to_id(handle_.get(), token.data(), token.size());
  if (id < 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

absl::StatusOr<Encoding> Tokenizer::Encode(std::string_view text,
                                           bool add_special_tokens) const {
  QloraEncoding raw = {};
  QloraString error = {};
  RETURN_IF_ERROR(
      ToStatus(qlora_tokenizer_encode(handle_.get(), text.data(), text.size(),
                                      add_special_tokens ? 1 : 0, &raw, &error),
               &error));
  Encoding out;
  out.ids.assign(raw.ids, raw.ids + raw.size);
  out.starts.assign(raw.starts, raw.starts + raw.size);
  out.ends.assign(raw.ends, raw.ends + raw.size);
  qlora_encoding_free(&raw);
  return out;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  const std::vector<uint32_t> raw(ids.begin(), ids.end());
  QloraString out = {};
  QloraString error = {};
  RETURN_IF_ERROR(ToStatus(
      qlora_tokenizer_decode(handle_.get(), raw.data(), raw.size(),
                             skip_special_tokens ? 1 : 0, &out, &error),
      &error));
  return Take(&out);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Compile(
    std::string_view source, std::string_view tokenizer_config) {
  QloraChatTemplate* handle = nullptr;
  QloraString error = {};
  RETURN_IF_ERROR(ToStatus(
      qlora_chat_template_compile(source.data(), source.size(),
                                  tokenizer_config.data(),
                                  tokenizer_config.size(), &handle, &error),
      &error));
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(handle));
}

absl::StatusOr<Rendered> ChatTemplate::Render(std::string_view input, Mask mask,
                                              absl::Time now) const {
  QloraRendered raw = {};
  QloraString error = {};
  const int which = mask == Mask::kNone        ? QLORA_MASK_NONE
                    : mask == Mask::kAssistant ? QLORA_MASK_ASSISTANT
                                               : QLORA_MASK_LAST;
  RETURN_IF_ERROR(ToStatus(
      qlora_chat_template_render(handle_.get(), input.data(), input.size(),
                                 absl::ToUnixSeconds(now), which, &raw, &error),
      &error));
  Rendered out;
  out.text.assign(raw.rendered.data, raw.rendered.size);
  for (size_t i = 0; i < raw.num_spans; ++i) {
    out.spans.push_back({raw.spans[i].begin, raw.spans[i].end});
  }
  out.has_mask = raw.has_mask != 0;
  out.mask_error.assign(raw.mask_error.data, raw.mask_error.size);
  qlora_rendered_free(&raw);
  return out;
}

absl::StatusOr<ModelText> LoadModelText(const std::string& directory,
                                        std::string_view chat_template) {
  ModelText out;
  ASSIGN_OR_RETURN(out.tokenizer, Tokenizer::Open(directory));
  // Older models keep their special tokens apart.
  ASSIGN_OR_RETURN(Json config,
                   ReadObject(directory + "/special_tokens_map.json"));
  ASSIGN_OR_RETURN(const Json newer,
                   ReadObject(directory + "/tokenizer_config.json"));
  config.update(newer);
  out.tokenizer_config = config.dump();
  out.bos_id = out.tokenizer->TokenToId(TokenText(config, "bos_token"));
  out.eos_id = out.tokenizer->TokenToId(TokenText(config, "eos_token"));

  out.chat_template_source = std::string(chat_template);
  if (chat_template.empty()) {
    ASSIGN_OR_RETURN(
        out.chat_template_source,
        ReadOptional(absl::StrCat(directory, "/chat_template.jinja")));
  }
  if (out.chat_template_source.empty()) {
    out.chat_template_source = TemplateOf(config);
  }
  if (!out.chat_template_source.empty()) {
    ASSIGN_OR_RETURN(
        out.chat_template,
        ChatTemplate::Compile(out.chat_template_source, out.tokenizer_config));
  }
  return out;
}

}  // namespace qlora::text
