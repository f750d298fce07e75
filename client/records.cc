#include "client/records.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/utf8.h"
#include "common/formats/json_fields.h"

namespace qlora::client {
namespace {

using Json = nlohmann::json;

constexpr int kListed = 10;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool HasString(const Json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_string();
}

// Empty if it is one.
std::string WhyNoMessage(const Json& message) {
  if (!message.is_object()) return "is not an object";
  if (!HasString(message, "role")) return "has no string \"role\"";
  const auto content = message.find("content");
  const bool absent = content == message.end() || content->is_null();
  if (absent ? message.contains("tool_calls")
             : content->is_string() || content->is_array()) {
    return "";
  }
  return absent ? "has no \"content\"" : "has a \"content\" that is no string";
}

std::string WhyNoChat(const Json& messages) {
  if (!messages.is_array() || messages.empty()) {
    return "\"messages\" is not an array with messages in it";
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string why = WhyNoMessage(messages[i]);
    if (!why.empty()) return absl::StrCat("messages[", i, "] ", why);
  }
  return "";
}

std::string WhyNoRecord(const Json& record) {
  if (!record.is_object()) return "is not a JSON object";
  if (HasString(record, "text") ||
      (HasString(record, "prompt") && HasString(record, "completion")) ||
      (HasString(record, "instruction") && HasString(record, "output"))) {
    return "";
  }
  const auto ids = record.find("input_ids");
  if (ids != record.end() && ids->is_array()) return "";
  const auto messages = record.find("messages");
  if (messages != record.end()) return WhyNoChat(*messages);
  return "has the keys of no format: \"messages\", \"prompt\" and "
         "\"completion\", \"instruction\" and \"output\", \"text\" (strings), "
         "or \"input_ids\"";
}

// Without "[json.exception.parse_error.101] ".
std::string NoJson(const Json::exception& error) {
  const std::string_view text = error.what();
  const size_t end = text.find("] ");
  return absl::StrCat(
      "not valid JSON: ",
      ToValidUtf8(text.substr(end == std::string_view::npos ? 0 : end + 2)));
}

std::string WhyNoJsonLine(const std::string& line) {
  if (JsonDepth(line) > kMaxJsonDepth) {
    return absl::StrCat("JSON is nested deeper than ", kMaxJsonDepth);
  }
  try {
    return WhyNoRecord(Json::parse(line));
  } catch (const Json::exception& error) {
    return NoJson(error);
  }
}

class BadRecords {
 public:
  void Add(const std::string& where, const std::string& why) {
    if (why.empty()) return;
    if (++count_ <= kListed) absl::StrAppend(&list_, where, ": ", why, "\n");
  }

  absl::Status status() const {
    if (count_ == 0) return absl::OkStatus();
    const std::string more =
        count_ > kListed ? absl::StrCat("and ", count_ - kListed, " more\n")
                         : "";
    return absl::InvalidArgumentError(list_ + more);
  }

 private:
  int64_t count_ = 0;
  std::string list_;
};

void CheckLines(std::istream& in, const std::string& name, bool json,
                BadRecords& bad) {
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = absl::StrCat(name, ":", number);
    if (json) {
      bad.Add(where, WhyNoJsonLine(line));
    } else if (ToValidUtf8(line) != line) {
      bad.Add(where, "is not UTF-8");
    }
  }
}

// The values of one array, each forgotten once it was looked at.
void CheckArray(std::istream& in, const std::string& name, BadRecords& bad) {
  int64_t number = 0;
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth != 1 || event == Json::parse_event_t::key) return true;
    if (event == Json::parse_event_t::object_start ||
        event == Json::parse_event_t::array_start) {
      return true;
    }
    bad.Add(absl::StrCat(name, ": record ", ++number), WhyNoRecord(value));
    return false;
  };
  try {
    [[maybe_unused]] const Json nothing = Json::parse(in, look);
  } catch (const Json::exception& error) {
    bad.Add(name, NoJson(error));
  }
}

}  // namespace

absl::Status CheckRecords(const std::string& path, const std::string& name) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return ErrnoToStatus(errno, path);
  char mark[3] = {};
  in.read(mark, sizeof(mark));
  in.clear();
  const bool marked = std::string_view(mark, sizeof(mark)) == kByteOrderMark;
  const std::streamoff start = marked ? sizeof(mark) : 0;
  in.seekg(start);
  char first = 0;
  in >> first;
  in.clear();
  in.seekg(start);
  const std::string end = std::filesystem::path(name).extension().string();
  const bool bracket = first == '[' || first == '{';
  BadRecords bad;
  if (end != ".txt" && first == '[') {
    CheckArray(in, name, bad);
  } else {
    const bool json = end == ".json" || end == ".jsonl" || end == ".ndjson" ||
                      (bracket && end != ".txt");
    CheckLines(in, name, json, bad);
  }
  return bad.status();
}

}  // namespace qlora::client
