#include "worker/trainer/data/encoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/spec/record_shape.h"
#include "worker/trainer/data/batch.h"

namespace qlora::trainer {
namespace {

using Json = RecordJson;
using text::Mask;
using text::Span;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Of a record that was checked.
const std::string& Text(const Json& record, const char* key) {
  return record[key].get_ref<const std::string&>();
}

constexpr std::string_view kRoles[] = {"system", "developer", "user",
                                       "assistant", "tool"};

// A template that names a role in quotes has a meaning for it; one that prints
// whatever role it is given has none.
bool IsRole(std::string_view role, std::string_view chat_template) {
  if (std::ranges::find(kRoles, role) != std::end(kRoles)) return true;
  // In quotes too, as the keys that they are.
  if (role.empty() || role == "role" || role == "content") return false;
  return std::ranges::any_of(std::string_view("'\""), [&](char quote) {
    const std::string quoted = quote + std::string(role) + quote;
    return chat_template.find(quoted) != std::string_view::npos;
  });
}

absl::Status CheckRoles(const Json& messages, std::string_view chat_template) {
  for (size_t i = 0; i < messages.size(); ++i) {
    if (IsRole(Text(messages[i], "role"), chat_template)) continue;
    return Bad("messages[", i, "].role is ", ShownJson(messages[i]["role"]),
               "; roles are ",
               absl::StrJoin(kRoles, ", ",
                             [](std::string* out, std::string_view name) {
                               out->append(name);
                             }),
               " and what the chat template names");
  }
  return absl::OkStatus();
}

// Labels of the tokens that begin inside a span.
std::vector<int32_t> LabelsInside(const text::Encoding& encoding,
                                  const std::vector<Span>& spans) {
  std::vector<int32_t> labels(encoding.ids.size(), kIgnoredLabel);
  for (size_t i = 0; i < labels.size(); ++i) {
    const uint32_t start = encoding.starts[i];
    const auto after =
        std::upper_bound(spans.begin(), spans.end(), start,
                         [](uint32_t at, const Span& s) { return at < s.end; });
    if (after != spans.end() && start >= after->begin) {
      labels[i] = encoding.ids[i];
    }
  }
  return labels;
}

absl::StatusOr<std::vector<int32_t>> Ids(const Json& array, const char* key,
                                         int64_t vocab_size, bool is_labels) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const bool integer = array[i].is_number_integer();
    const int64_t id = integer ? array[i].get<int64_t>() : -1;
    const bool ignored = is_labels && integer && id == kIgnoredLabel;
    if (!ignored && (id < 0 || id >= vocab_size)) {
      return Bad(key, "[", i, "] is ", ShownJson(array[i]),
                 ", not a token id below ", vocab_size,
                 is_labels ? " or -100" : "");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// The prompt with which Stanford Alpaca was trained.
std::string AlpacaPrompt(const std::string& instruction,
                         const std::string& input) {
  return input.empty()
             ? absl::StrCat(
                   "Below is an instruction that describes a task. Write a "
                   "response that appropriately completes the request.\n\n"
                   "### Instruction:\n",
                   instruction, "\n\n### Response:\n")
             : absl::StrCat(
                   "Below is an instruction that describes a task, paired with "
                   "an input that provides further context. Write a response "
                   "that appropriately completes the request.\n\n"
                   "### Instruction:\n",
                   instruction, "\n\n### Input:\n", input,
                   "\n\n### Response:\n");
}

}  // namespace

// What transformers gives a template, which may ask whether tools is none.
RecordJson TemplateInput(const RecordJson& record) {
  RecordJson input = {{"tools", nullptr}, {"documents", nullptr}};
  for (const char* key : {"messages", "tools", "documents"}) {
    if (record.contains(key)) input[key] = record[key];
  }
  const auto more = record.find("chat_template_kwargs");
  if (more != record.end() && more->is_object()) input.update(*more);
  return input;
}

bool HasTrainedToken(const int32_t* labels, int64_t length) {
  for (int64_t i = 1; i < length; ++i) {
    if (labels[i] != kIgnoredLabel) return true;
  }
  return false;
}

absl::StatusOr<EncodedRecord> RecordEncoder::Encode(const Record& record,
                                                    DataFormat format) const {
  ASSIGN_OR_RETURN(const Json value, ParseRecord(record.text));
  RETURN_IF_ERROR(CheckRecord(value, format));
  switch (format) {
    case DataFormat::kChat:
      return EncodeChat(value);
    case DataFormat::kAlpaca:
      return EncodeAlpaca(value);
    case DataFormat::kTokens:
      return EncodeTokens(value);
    case DataFormat::kPromptCompletion:
      return EncodeCompletion(Text(value, "prompt"), Text(value, "completion"));
    case DataFormat::kText:
      break;
  }
  EncodedRecord out;
  ASSIGN_OR_RETURN(out.tokens, EncodePlain("", Text(value, "text")));
  out.labels = out.tokens;
  return out;
}

absl::StatusOr<std::vector<int32_t>> RecordEncoder::EncodePlain(
    std::string_view before, std::string_view text) const {
  ASSIGN_OR_RETURN(
      text::Encoding encoding,
      text_->tokenizer->Encode(std::string(before).append(text),
                               /*add_special_tokens=*/before.empty()));
  size_t known = 0;
  if (!before.empty()) {
    while (known < encoding.ids.size() &&
           encoding.starts[known] < before.size()) {
      ++known;
    }
    if (known > 0 && encoding.ends[known - 1] > before.size()) {
      // A token of both: its first part went with what is before.
      ASSIGN_OR_RETURN(encoding, text_->tokenizer->Encode(
                                     text, /*add_special_tokens=*/false));
      known = 0;
    }
  }
  encoding.ids.erase(encoding.ids.begin(),
                     encoding.ids.begin() + static_cast<int64_t>(known));
  RETURN_IF_ERROR(CheckVocabulary(encoding.ids));
  return std::move(encoding.ids);
}

absl::StatusOr<EncodedRecord> RecordEncoder::EncodeChat(
    const Json& record) const {
  RETURN_IF_ERROR(CheckRoles(record["messages"], text_->chat_template_source));
  const Mask mask = loss_on_ == LossOn::kAll         ? Mask::kNone
                    : loss_on_ == LossOn::kAssistant ? Mask::kAssistant
                                                     : Mask::kLast;
  ASSIGN_OR_RETURN(
      const text::Rendered rendered,
      text_->chat_template->Render(TemplateInput(record).dump(), mask, now_));
  if (mask != Mask::kNone && !rendered.has_mask) {
    return Bad(rendered.mask_error);
  }
  ASSIGN_OR_RETURN(text::Encoding encoding,
                   text_->tokenizer->Encode(rendered.text,
                                            /*add_special_tokens=*/false));
  RETURN_IF_ERROR(CheckVocabulary(encoding.ids));
  EncodedRecord out;
  out.labels = mask == Mask::kNone ? encoding.ids
                                   : LabelsInside(encoding, rendered.spans);
  out.tokens = std::move(encoding.ids);
  return out;
}

absl::StatusOr<EncodedRecord> RecordEncoder::EncodeCompletion(
    const std::string& prompt, const std::string& completion) const {
  ASSIGN_OR_RETURN(text::Encoding encoding,
                   text_->tokenizer->Encode(prompt + completion,
                                            /*add_special_tokens=*/true));
  const auto begin = static_cast<uint32_t>(prompt.size());
  const auto end = static_cast<uint32_t>(prompt.size() + completion.size());
  EncodedRecord out;
  out.labels = loss_on_ == LossOn::kAll
                   ? encoding.ids
                   : LabelsInside(encoding, {{begin, end}});
  out.tokens = std::move(encoding.ids);
  if (text_->eos_id.has_value()) {
    if (out.tokens.empty() || out.tokens.back() != *text_->eos_id) {
      out.tokens.push_back(*text_->eos_id);
      out.labels.push_back(*text_->eos_id);
    }
    out.labels.back() = *text_->eos_id;
  }
  RETURN_IF_ERROR(CheckVocabulary(out.tokens));
  return out;
}

absl::StatusOr<EncodedRecord> RecordEncoder::EncodeAlpaca(
    const Json& record) const {
  const std::string& instruction = Text(record, "instruction");
  const std::string& output = Text(record, "output");
  std::string input;
  if (record.contains("input") && !record["input"].is_null()) {
    input = Text(record, "input");
  }
  if (text_->chat_template == nullptr) {
    return EncodeCompletion(AlpacaPrompt(instruction, input), output);
  }
  const std::string asked =
      input.empty() ? instruction : absl::StrCat(instruction, "\n\n", input);
  return EncodeChat({{"messages",
                      {{{"role", "user"}, {"content", asked}},
                       {{"role", "assistant"}, {"content", output}}}}});
}

absl::StatusOr<EncodedRecord> RecordEncoder::EncodeTokens(
    const Json& record) const {
  EncodedRecord out;
  ASSIGN_OR_RETURN(out.tokens,
                   Ids(record["input_ids"], "input_ids", vocab_size_, false));
  out.labels = out.tokens;
  if (record.contains("labels") && !record["labels"].is_null()) {
    ASSIGN_OR_RETURN(out.labels,
                     Ids(record["labels"], "labels", vocab_size_, true));
  }
  if (out.labels.size() != out.tokens.size()) {
    return Bad("has ", Plural(out.tokens.size(), "token"), " in input_ids but ",
               Plural(out.labels.size(), "label"));
  }
  return out;
}

absl::Status RecordEncoder::CheckVocabulary(
    const std::vector<int32_t>& ids) const {
  for (const int32_t id : ids) {
    // An id above 2^31 came out negative.
    if (id >= 0 && id < vocab_size_) continue;
    const auto token = text_->tokenizer->Decode({&id, 1}, false);
    return absl::FailedPreconditionError(absl::StrCat(
        "the tokenizer in ", text_->tokenizer->directory(), " gives token id ",
        id, " (\"", token.value_or(""), "\"), but the model's vocabulary has ",
        vocab_size_, " entries; use the tokenizer that belongs to the model"));
  }
  return absl::OkStatus();
}

}  // namespace qlora::trainer
