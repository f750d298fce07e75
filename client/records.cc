#include "client/records.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/formats/json_error.h"
#include "common/formats/json_fields.h"

namespace qlora::client {
namespace {

using Json = nlohmann::json;

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
  return content == message.end() ? "has no \"content\""
                                  : "has a \"content\" that is not a string";
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

// ", only \"answer\", \"question\"": the first keys of an object, if any.
std::string OnlyKeys(const Json& record) {
  constexpr size_t kKeys = 6;
  constexpr size_t kKeyBytes = 40;
  std::vector<std::string> keys;
  for (const auto& [key, value] : record.items()) {
    if (keys.size() == kKeys) {
      keys.push_back("...");
      break;
    }
    keys.push_back(absl::StrCat("\"", Abridged(key, kKeyBytes), "\""));
  }
  return keys.empty() ? "" : absl::StrCat(", only ", absl::StrJoin(keys, ", "));
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
  return absl::StrCat("has the keys of no format", OnlyKeys(record),
                      ": it needs \"messages\", \"prompt\" and "
                      "\"completion\", \"instruction\" and \"output\", "
                      "\"text\" (strings), or \"input_ids\"");
}

std::string WhyNoJsonLine(const std::string& line) {
  if (JsonDepth(line) > kMaxJsonDepth) {
    return absl::StrCat("JSON is nested deeper than ", kMaxJsonDepth);
  }
  const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_discarded()) return WhyNoRecord(record);
  return absl::StrCat("not valid JSON ", JsonError(line));
}

class BadRecords {
 public:
  // The record of this number; good if `why` is empty.
  void Add(int64_t number, const std::string& why) {
    if (why.empty()) {
      any_good_ = true;
      return;
    }
    const auto same = std::ranges::find(reasons_, why, &Reason::why);
    if (same == reasons_.end() && reasons_.size() == kReasons) {
      ++others_;
      return;
    }
    Reason& reason =
        same == reasons_.end() ? reasons_.emplace_back(Reason{why}) : *same;
    if (reason.count++ < kNumbers) {
      absl::StrAppend(&reason.numbers, reason.count > 1 ? ", " : "", number);
    }
  }

  bool any_good() const { return any_good_; }

  // `place` stands before the number of a line or record.
  std::string List(const std::string& place) const {
    std::string list;
    for (const Reason& reason : reasons_) {
      absl::StrAppend(&list, place, reason.numbers);
      if (reason.count > kNumbers) {
        absl::StrAppend(&list, " and ", reason.count - kNumbers, " more");
      }
      absl::StrAppend(&list, ": ", reason.why, "\n");
    }
    if (others_ > 0) absl::StrAppend(&list, "and ", others_, " more\n");
    return list;
  }

 private:
  static constexpr size_t kReasons = 10;
  static constexpr int64_t kNumbers = 3;
  struct Reason {
    std::string why;
    std::string numbers = {};
    int64_t count = 0;
  };
  bool any_good_ = false;
  // In the order in which they came.
  std::vector<Reason> reasons_;
  // Records that are bad for yet other reasons.
  int64_t others_ = 0;
};

void CheckLines(std::istream& in, bool json, BadRecords& bad) {
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const bool utf8 = json || ToValidUtf8(line) == line;
    bad.Add(number, json ? WhyNoJsonLine(line) : utf8 ? "" : "is not UTF-8");
  }
}

// The values of one array, each forgotten once it was looked at. False if it
// is no JSON.
bool CheckArray(std::istream& in, BadRecords& bad) {
  int64_t number = 0;
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth != 1 || event == Json::parse_event_t::key) return true;
    if (event == Json::parse_event_t::object_start ||
        event == Json::parse_event_t::array_start) {
      return true;
    }
    bad.Add(++number, WhyNoRecord(value));
    return false;
  };
  return !Json::parse(in, look, /*allow_exceptions=*/false).is_discarded();
}

absl::Status ToStatus(const std::string& list) {
  return list.empty() ? absl::OkStatus() : absl::InvalidArgumentError(list);
}

}  // namespace

absl::Status CheckRecords(const std::string& path, const std::string& name,
                          bool* any_good) {
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
    const bool whole = CheckArray(in, bad);
    *any_good = bad.any_good();
    std::string list = bad.List(absl::StrCat(name, ": record "));
    if (whole) return ToStatus(list);
    // Where it stops being JSON can only be seen in the whole text.
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    absl::StrAppend(&list, name, ": not valid JSON ", JsonError(text), "\n");
    return ToStatus(list);
  }
  const bool json = end == ".json" || end == ".jsonl" || end == ".ndjson" ||
                    (bracket && end != ".txt");
  CheckLines(in, json, bad);
  *any_good = bad.any_good();
  return ToStatus(bad.List(absl::StrCat(name, ":")));
}

}  // namespace qlora::client
