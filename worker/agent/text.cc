#include "worker/agent/text.h"

#include <algorithm>
#include <initializer_list>

#include "common/base/utf8.h"

namespace qlora::agent {
namespace {

constexpr size_t kMaxLine = 8 << 10;

std::string_view LevelOfLetter(char letter) {
  switch (letter) {
    case 'T':
    case 'D':
      return "debug";
    case 'I':
      return "info";
    case 'W':
      return "warning";
    case 'E':
    case 'C':
    case 'F':
      return "error";
    default:
      return "";
  }
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// "2026-11-21T12:00:00.000Z E qlora-trainer: text" (common/base/log.h).
bool ParseOwnLine(std::string_view line, PrintedLine& parsed) {
  constexpr size_t kLetter = 25;
  const size_t colon = line.find(": ");
  if (colon == std::string_view::npos || colon < kLetter + 3 ||
      !IsDigit(line[0]) || line[10] != 'T' || line[23] != 'Z' ||
      line[24] != ' ' || line[26] != ' ') {
    return false;
  }
  parsed = {LevelOfLetter(line[kLetter]), line.substr(colon + 2)};
  return !parsed.level.empty();
}

// "W1121 12:00:00.000000 1 file.cc:1] text", with or without '[' before it.
std::string_view GlogLevel(std::string_view line) {
  if (line.starts_with('[')) line.remove_prefix(1);
  if (line.size() < 5 || !std::ranges::all_of(line.substr(1, 4), IsDigit)) {
    return "";
  }
  return LevelOfLetter(line[0]);
}

// "/path/pair.cc:534".
bool IsSourcePlace(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == text.size() ||
      !std::ranges::all_of(text.substr(colon + 1), IsDigit)) {
    return false;
  }
  const std::string_view file = text.substr(0, colon);
  return std::ranges::any_of(
      std::initializer_list<std::string_view>{".cc", ".cpp", ".h", ".hpp"},
      [&](std::string_view ending) { return file.ends_with(ending); });
}

// "ERROR: text", "warning: text", "[error] text".
std::string_view FirstWordLevel(std::string_view line) {
  const size_t end = line.find_first_of(":]");
  if (end == std::string_view::npos) return "";
  std::string word(line.substr(0, end));
  if (word.starts_with('[')) word.erase(0, 1);
  for (char& c : word) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  if (word == "error" || word == "fatal" || word == "critical") return "error";
  if (word == "warning" || word == "warn") return "warning";
  return word == "debug" ? "debug" : "";
}

}  // namespace

std::string WithoutSourcePlaces(std::string_view message) {
  std::string kept;
  while (true) {
    const size_t open = message.find('[');
    const size_t close = message.find(']', open);
    if (close == std::string_view::npos) return kept.append(message);
    if (IsSourcePlace(message.substr(open + 1, close - open - 1))) {
      kept.append(message.substr(0, open));
      message.remove_prefix(close + 1);
      if (message.starts_with(' ')) message.remove_prefix(1);
    } else {
      kept.append(message.substr(0, open + 1));
      message.remove_prefix(open + 1);
    }
  }
}

PrintedLine ParsePrintedLine(std::string_view line) {
  PrintedLine own;
  if (ParseOwnLine(line, own)) return own;
  for (const std::string_view level : {GlogLevel(line), FirstWordLevel(line)}) {
    if (!level.empty()) return {level, line};
  }
  return {"info", line};
}

void LineSplitter::Append(std::string_view bytes) {
  for (const char c : bytes) {
    if (c != '\n') pending_.push_back(c);
    if (c == '\n' || pending_.size() >= kMaxLine) Flush();
  }
}

void LineSplitter::Finish() { Flush(); }

void LineSplitter::Flush() {
  if (!pending_.empty() && pending_.back() == '\r') pending_.pop_back();
  if (!pending_.empty()) on_line_(ToValidUtf8(pending_));
  pending_.clear();
}

}  // namespace qlora::agent
