#include "common/formats/json_error.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/utf8.h"
#include "common/formats/json_fields.h"

namespace qlora {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Reads the grammar of RFC 8259. Each reader leaves at_ behind what it has
// read, or gives false with at_ and what_ set to the error.
class Checker {
 public:
  // The parser skips a byte order mark.
  explicit Checker(std::string_view text)
      : text_(text), at_(text.starts_with("\xef\xbb\xbf") ? 3 : 0) {}

  bool Text() {
    if (!Value(0)) return false;
    SkipSpace();
    return AtEnd() || Fail("something follows the end of the value");
  }
  size_t at() const { return at_; }
  const char* what() const { return what_; }

 private:
  bool AtEnd() const { return at_ == text_.size(); }
  // 0 at the end; a 0 in the text is no part of JSON either.
  char Next() const { return AtEnd() ? '\0' : text_[at_]; }
  bool Take(char c) {
    if (Next() != c) return false;
    ++at_;
    return true;
  }
  bool Fail(const char* what) {
    what_ = what;
    return false;
  }
  bool FailAt(size_t at, const char* what) {
    at_ = at;
    return Fail(what);
  }
  void SkipSpace() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
  }
  size_t TakeDigits() {
    const size_t begin = at_;
    while (IsDigit(Next())) ++at_;
    return at_ - begin;
  }

  bool Value(int depth);
  // Behind the opening bracket.
  bool Items(char close, int depth);
  bool Key();
  bool String();
  bool Escape();
  bool HexUnit(uint32_t* unit);
  bool Character();
  bool Number();
  bool Word();

  const std::string_view text_;
  size_t at_ = 0;
  const char* what_ = "";
};

bool Checker::Value(int depth) {
  SkipSpace();
  if (AtEnd()) return Fail("it ends where a value is expected");
  const char c = Next();
  if (c == '{' || c == '[') {
    if (depth == kMaxJsonDepth) {
      static_assert(kMaxJsonDepth == 100);
      return Fail("it is nested deeper than 100");
    }
    ++at_;
    return Items(c == '{' ? '}' : ']', depth + 1);
  }
  if (c == '"') return String();
  if (c == '-' || IsDigit(c)) return Number();
  if (IsLetter(c)) return Word();
  if (c == '\'') return Fail("text stands in double quotes, not single ones");
  if (c == ',' || c == ']' || c == '}') {
    return Fail("a value is missing before this");
  }
  return Fail("no value begins with this character");
}

bool Checker::Items(char close, int depth) {
  SkipSpace();
  if (Take(close)) return true;
  const bool object = close == '}';
  while (true) {
    if (object && !Key()) return false;
    if (!Value(depth)) return false;
    SkipSpace();
    if (Take(close)) return true;
    const size_t comma = at_;
    if (!Take(',')) break;
    SkipSpace();
    if (Next() == close) {
      return FailAt(comma, "a comma stands behind the last item");
    }
  }
  if (AtEnd()) return Fail(object ? "it ends without }" : "it ends without ]");
  return Fail(object ? "a comma or } is missing before this"
                     : "a comma or ] is missing before this");
}

bool Checker::Key() {
  SkipSpace();
  if (AtEnd()) return Fail("it ends without }");
  if (Next() != '"') return Fail("a key in double quotes is expected");
  if (!String()) return false;
  SkipSpace();
  return Take(':') || Fail("a colon is missing behind the key");
}

bool Checker::String() {
  const size_t begin = at_++;
  while (!AtEnd()) {
    if (Take('"')) return true;
    if (!Character()) return false;
  }
  return FailAt(begin, "the text that begins here has no closing quote");
}

bool Checker::Character() {
  const auto c = static_cast<uint8_t>(Next());
  if (c == '\\') return Escape();
  if (c < 0x20) {
    return Fail(
        "a control character stands in a text; write a line break as \\n, a "
        "tab as \\t");
  }
  const size_t length = Utf8Length(text_.substr(at_));
  if (length == 0) return Fail("a byte is no UTF-8; save the file as UTF-8");
  at_ += length;
  return true;
}

bool Checker::Escape() {
  const size_t begin = at_++;
  if (!AtEnd() &&
      std::string_view("\"\\/bfnrt").find(Next()) != std::string_view::npos) {
    ++at_;
    return true;
  }
  uint32_t unit = 0;
  if (!HexUnit(&unit)) {
    return FailAt(begin,
                  "a backslash begins no escape of JSON here; write \\\\ for a "
                  "backslash");
  }
  if (unit < 0xd800 || unit > 0xdfff) return true;
  uint32_t second = 0;
  const bool pair = unit < 0xdc00 && Take('\\') && HexUnit(&second) &&
                    second >= 0xdc00 && second <= 0xdfff;
  return pair || FailAt(begin, "half of a surrogate pair stands alone");
}

bool Checker::HexUnit(uint32_t* unit) {
  if (!Take('u')) return false;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = Next();
    if (!std::isxdigit(static_cast<unsigned char>(c))) return false;
    *unit = *unit * 16 + (IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return true;
}

bool Checker::Number() {
  const size_t begin = at_;
  Take('-');
  const bool zero = Next() == '0';
  const size_t digits = TakeDigits();
  bool good = digits > 0 && !(zero && digits > 1);
  if (Take('.')) good &= TakeDigits() > 0;
  if (Take('e') || Take('E')) {
    if (!Take('-')) Take('+');
    good &= TakeDigits() > 0;
  }
  if (!good || IsLetter(Next())) {
    return FailAt(begin, "this is no number as JSON writes it");
  }
  const std::string_view number = text_.substr(begin, at_ - begin);
  double value = 0;
  // Gives an infinity where the number is above all.
  const bool parsed =
      absl::SimpleAtod(absl::string_view(number.data(), number.size()), &value);
  return (parsed && value - value == 0) ||
         FailAt(begin, "this number is too large");
}

bool Checker::Word() {
  const size_t begin = at_;
  while (IsLetter(Next())) ++at_;
  const std::string_view word = text_.substr(begin, at_ - begin);
  if (word == "true" || word == "false" || word == "null") return true;
  return FailAt(begin,
                "this word is no value; JSON has true, false and null, and "
                "text stands in double quotes");
}

}  // namespace

std::string JsonError(std::string_view text) {
  Checker checker(text);
  if (checker.Text()) return "";
  const std::string_view before = text.substr(0, checker.at());
  const std::string_view line = before.substr(before.rfind('\n') + 1);
  const auto column = 1 + std::ranges::count_if(line, [](char c) {
                        return (static_cast<uint8_t>(c) & 0xc0) != 0x80;
                      });
  std::string where = absl::StrCat("column ", column, ": ", checker.what());
  // A line break behind it all says nothing.
  if (before.find('\n') != before.npos ||
      text.find('\n') < text.find_last_not_of(" \t\r\n")) {
    where = absl::StrCat("line ", 1 + std::ranges::count(before, '\n'), ", ",
                         where);
  }
  return "at " + where;
}

}  // namespace qlora
