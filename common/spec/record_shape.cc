#include "common/spec/record_shape.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"

namespace qlora {
namespace {

struct Key {
  DataFormat format;
  const char* name;
  bool array = false;
  bool optional = false;
};

constexpr Key kKeys[] = {
    {DataFormat::kChat, "messages", true},
    {DataFormat::kChat, "tools", true, true},
    {DataFormat::kPromptCompletion, "prompt"},
    {DataFormat::kPromptCompletion, "completion"},
    {DataFormat::kAlpaca, "instruction"},
    {DataFormat::kAlpaca, "output"},
    {DataFormat::kAlpaca, "input", false, true},
    {DataFormat::kText, "text"},
    {DataFormat::kTokens, "input_ids", true},
    {DataFormat::kTokens, "labels", true, true},
};

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// The first ones, as many as a message takes.
std::string KeysOf(const RecordJson& record) {
  std::string keys;
  for (const auto& [key, value] : record.items()) {
    if (keys.size() > 200) return keys + ", ...";
    absl::StrAppend(&keys, keys.empty() ? "" : ", ", "\"", Abridged(key, 40),
                    "\"");
  }
  return keys.empty() ? "no keys" : keys;
}

bool HasKeysOf(DataFormat format, const RecordJson& record) {
  return std::ranges::all_of(kKeys, [&](const Key& key) {
    return key.format != format || key.optional || record.contains(key.name);
  });
}

absl::Status CheckMessages(const RecordJson& messages) {
  if (!messages.is_array() || messages.empty()) {
    return Bad("\"messages\" is not an array with messages in it");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const RecordJson& message = messages[i];
    const std::string name = absl::StrCat("messages[", i, "]");
    if (!message.is_object()) return Bad(name, " is not an object");
    if (!message.contains("role") || !message["role"].is_string()) {
      return Bad(name, " has no string \"role\"");
    }
    const auto content = message.find("content");
    const bool absent = content == message.end() || content->is_null();
    if (absent && !message.contains("tool_calls")) {
      return Bad(name, " has no \"content\"");
    }
    if (!absent && !content->is_string() && !content->is_array()) {
      return Bad(name, ".content is not a string");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckValue(const Key& key, const RecordJson& value) {
  if (key.name == std::string_view("messages")) return CheckMessages(value);
  if (key.array ? value.is_array() : value.is_string()) return absl::OkStatus();
  return Bad("\"", key.name, "\" is not ", key.array ? "an array" : "a string");
}

}  // namespace

absl::Status CheckRecord(const RecordJson& record, DataFormat format) {
  if (!record.is_object()) return Bad("is not a JSON object");
  for (const Key& key : kKeys) {
    if (key.format != format) continue;
    const auto value = record.find(key.name);
    const bool absent = value == record.end();
    if (key.optional && (absent || value->is_null())) continue;
    if (absent) {
      return Bad("lacks \"", key.name, "\" (it has ", KeysOf(record),
                 "); correct the record or data.train[].format");
    }
    RETURN_IF_ERROR(CheckValue(key, *value));
  }
  return absl::OkStatus();
}

absl::Status CheckRecordOfAnyFormat(const RecordJson& record) {
  if (!record.is_object()) return CheckRecord(record, DataFormat::kText);
  absl::Status why;
  for (const Key& key : kKeys) {
    if (!HasKeysOf(key.format, record)) continue;
    const absl::Status status = CheckRecord(record, key.format);
    if (status.ok()) return status;
    why.Update(status);
  }
  if (!why.ok()) return why;
  return Bad("has the keys of no format (it has ", KeysOf(record),
             "): it needs \"messages\", \"prompt\" and \"completion\", "
             "\"instruction\" and \"output\", \"text\", or \"input_ids\"");
}

}  // namespace qlora
