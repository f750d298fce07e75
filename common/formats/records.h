// Reads the records of a data file:
//
//   one JSON object a line, or a file that holds one JSON array, or plain text
//
// A file is plain text if it may be and neither is called .json, .jsonl or
// .ndjson nor begins with a bracket (which a .txt may). Blank lines and a byte
// order mark are skipped. A line or a value of the array of more than 64 MiB is
// refused, so memory is bounded whatever the file. Used by one thread.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/json_array.h"
#include "nlohmann/json.hpp"

namespace qlora {

// Keeps the order of keys: templates print what they are given.
using RecordJson = nlohmann::ordered_json;

struct Record {
  // "FILE:LINE" or, out of an array, "FILE:LINE (record N)".
  std::string where;
  // Where it begins, from 1.
  int64_t line = 0;
  // Said to be JSON, or a piece of plain text.
  std::string text;
  bool plain = false;
};

// InvalidArgument saying where the text stops to be JSON; nesting deeper than
// 100 is refused.
absl::StatusOr<RecordJson> ParseRecord(std::string_view text);

class RecordReader {
 public:
  // The file at `path`, which messages call `name`. NotFound, or
  // InvalidArgument if it is no regular file.
  static absl::StatusOr<std::unique_ptr<RecordReader>> Open(
      const std::string& path, const std::string& name, bool may_be_plain);

  // The next records, at most `limit` and some 64 MiB of text; none at the end.
  // Plain text comes in pieces that are cut at ends of lines. Unavailable if
  // reading fails, InvalidArgument for a record that is too long and an array
  // that is broken.
  absl::StatusOr<std::vector<Record>> Next(int limit);

 private:
  enum class Layout { kLines, kArray, kPlain };

  RecordReader(const std::string& path, const std::string& name)
      : name_(name), in_(path, std::ios::binary) {}
  void DetectLayout(bool may_be_plain);
  // False at the end of the file, or with status_ set.
  bool ReadLine(std::string* line);
  bool NextLine(Record* record);
  bool NextArrayValue(Record* record);
  bool NextPiece(Record* record);

  const std::string name_;
  std::ifstream in_;
  absl::Status status_;
  Layout layout_ = Layout::kLines;
  int64_t line_ = 0;
  // Of kArray, and the number of its values so far.
  std::unique_ptr<JsonArrayReader> array_;
  int64_t values_ = 0;
};

}  // namespace qlora
