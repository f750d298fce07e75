// Cuts the JSON array that a stream holds into the texts of its values, so that
// one value is in memory at a time. Used by one thread.
#pragma once

#include <cstdint>
#include <istream>
#include <string>

#include "absl/status/statusor.h"

namespace qlora {

class JsonArrayReader {
 public:
  // Both must outlive the object; nobody else may read `in`. A value longer
  // than max_bytes is refused.
  JsonArrayReader(std::istream& in, size_t max_bytes)
      : in_(in), max_bytes_(max_bytes) {}

  // The next value as it stands, which need not be JSON; false behind the last
  // one. InvalidArgument where the array itself is broken or a value too long:
  // line() and the message say where and what.
  absl::StatusOr<bool> Next(std::string* text);
  // Where the newest value begins, from 1.
  int64_t line() const { return value_line_; }

 private:
  // -1 at the end.
  int Peek();
  int Take();
  int PeekBehindSpace();
  absl::Status TakeValue(std::string* text);
  absl::Status CheckEnd();

  std::istream& in_;
  const size_t max_bytes_;
  std::string buffer_;
  size_t next_ = 0;
  int64_t line_ = 1;
  int64_t value_line_ = 1;
  bool begun_ = false;
  bool ended_ = false;
};

}  // namespace qlora
