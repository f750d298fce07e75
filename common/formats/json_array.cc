#include "common/formats/json_array.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/formats/records.h"

namespace qlora {
namespace {

constexpr size_t kBufferBytes = 1 << 16;

bool IsSpace(int c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

absl::Status Broken(const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(
      why,
      "; a file that begins with [ has to be one array of records, other "
      "files hold one object a line"));
}

}  // namespace

int JsonArrayReader::Peek() {
  if (next_ == buffer_.size()) {
    buffer_.resize(kBufferBytes);
    in_.read(buffer_.data(), kBufferBytes);
    buffer_.resize(in_.gcount());
    next_ = 0;
    if (buffer_.empty()) return -1;
  }
  return static_cast<unsigned char>(buffer_[next_]);
}

int JsonArrayReader::Take() {
  const int c = Peek();
  if (c >= 0) ++next_;
  if (c == '\n') ++line_;
  return c;
}

int JsonArrayReader::PeekBehindSpace() {
  while (IsSpace(Peek())) Take();
  return Peek();
}

absl::StatusOr<bool> JsonArrayReader::Next(std::string* text) {
  text->clear();
  if (ended_) return false;
  if (!begun_) {
    PeekBehindSpace();
    Take();  // the bracket
    if (PeekBehindSpace() == ']') {
      RETURN_IF_ERROR(CheckEnd());
      return false;
    }
    begun_ = true;
  }
  PeekBehindSpace();
  value_line_ = line_;
  RETURN_IF_ERROR(TakeValue(text));
  if (Peek() == ',') {
    Take();
    return true;
  }
  if (Peek() == ']') {
    RETURN_IF_ERROR(CheckEnd());
    return true;
  }
  const absl::Status valid = ParseRecord(*text).status();
  if (!valid.ok()) return Broken(std::string(valid.message()));
  return Broken(Peek() < 0 ? "the array ends without ]"
                           : "a comma or ] is missing behind the record");
}

absl::Status JsonArrayReader::TakeValue(std::string* text) {
  int depth = 0;
  bool in_string = false;
  for (int c = Peek(); c >= 0; c = Peek()) {
    if (!in_string && depth == 0 && (c == ',' || c == ']' || c == '}')) break;
    if (text->size() >= max_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrCat("the record is longer than ", max_bytes_ >> 20,
                       " MiB; cut it in several"));
    }
    text->push_back(static_cast<char>(Take()));
    if (in_string) {
      if (c == '\\' && Peek() >= 0) text->push_back(static_cast<char>(Take()));
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return absl::OkStatus();
}

absl::Status JsonArrayReader::CheckEnd() {
  Take();
  ended_ = true;
  if (PeekBehindSpace() < 0) return absl::OkStatus();
  value_line_ = line_;
  return Broken("something follows the end of the array");
}

}  // namespace qlora
