#include "common/formats/records.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/formats/json_error.h"
#include "common/formats/json_fields.h"

namespace qlora {
namespace {

// The tokenizer holds about 150 bytes for each byte of a piece.
constexpr size_t kPieceBytes = 256 << 10;
constexpr size_t kMaxLineBytes = 64 << 20;
constexpr size_t kBatchBytes = 4 << 20;
constexpr char kByteOrderMark[] = "\xef\xbb\xbf";

bool IsBlank(std::string_view line) {
  return line.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

}  // namespace

absl::StatusOr<RecordJson> ParseRecord(std::string_view text) {
  if (JsonDepth(text) > kMaxJsonDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON is nested deeper than ", kMaxJsonDepth));
  }
  RecordJson value =
      RecordJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_discarded()) return value;
  std::string error = JsonError(text);
  error.insert(error.find(": "), " of the record");
  return absl::InvalidArgumentError(absl::StrCat("not valid JSON ", error));
}

absl::StatusOr<std::unique_ptr<RecordReader>> RecordReader::Open(
    const std::string& path, const std::string& name, bool may_be_plain) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(absl::StrCat(
        "data file ", name, name == path ? "" : absl::StrCat(" (", path, ")"),
        " does not exist"));
  }
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(
        absl::StrCat("data file ", name, " is not a regular file"));
  }
  std::unique_ptr<RecordReader> reader(new RecordReader(path, name));
  if (!reader->in_) {
    return absl::PermissionDeniedError(
        absl::StrCat("data file ", name, " cannot be read"));
  }
  reader->DetectLayout(may_be_plain);
  return reader;
}

void RecordReader::DetectLayout(bool may_be_plain) {
  char mark[3] = {};
  in_.read(mark, sizeof(mark));
  in_.clear();
  if (std::string_view(mark, sizeof(mark)) != kByteOrderMark) in_.seekg(0);
  const auto start = in_.tellg();
  char first = 0;
  in_ >> first;
  in_.clear();
  in_.seekg(start);
  const bool named_json = name_.ends_with(".json") ||
                          name_.ends_with(".jsonl") ||
                          name_.ends_with(".ndjson");
  const bool bracket = first == '[' || first == '{';
  if (may_be_plain && !named_json && (!bracket || name_.ends_with(".txt"))) {
    layout_ = Layout::kPlain;
  } else if (first == '[') {
    array_ = std::make_unique<JsonArrayReader>(in_, kMaxLineBytes);
    layout_ = Layout::kArray;
  }
}

absl::StatusOr<std::vector<Record>> RecordReader::Next(int limit) {
  std::vector<Record> records;
  size_t bytes = 0;
  while (static_cast<int>(records.size()) < limit && bytes < kBatchBytes) {
    Record record;
    const bool got = layout_ == Layout::kLines   ? NextLine(&record)
                     : layout_ == Layout::kArray ? NextArrayValue(&record)
                                                 : NextPiece(&record);
    if (!got) break;
    bytes += record.text.size();
    records.push_back(std::move(record));
    // Pieces are large: one at a time bounds the memory.
    if (layout_ == Layout::kPlain) break;
  }
  if (in_.bad()) {
    return absl::UnavailableError(
        absl::StrCat("reading data file ", name_, " failed"));
  }
  RETURN_IF_ERROR(status_);
  return records;
}

bool RecordReader::ReadLine(std::string* line) {
  line->clear();
  std::array<char, 1 << 16> part;
  while (line->size() <= kMaxLineBytes) {
    in_.getline(part.data(), part.size());
    const auto got = static_cast<size_t>(in_.gcount());
    if (in_.bad()) return false;
    if (in_.good()) {  // the end of the line counts and is not stored
      line->append(part.data(), got - 1);
      return true;
    }
    line->append(part.data(), got);
    if (in_.eof()) return !line->empty();
    in_.clear();  // the part is full
  }
  status_ = absl::InvalidArgumentError(
      absl::StrCat(name_, ":", line_ + 1, ": the line is longer than ",
                   kMaxLineBytes >> 20, " MiB; cut it in several"));
  return false;
}

bool RecordReader::NextLine(Record* record) {
  while (ReadLine(&record->text)) {
    ++line_;
    if (IsBlank(record->text)) continue;
    record->line = line_;
    record->where = absl::StrCat(name_, ":", line_);
    return true;
  }
  return false;
}

bool RecordReader::NextArrayValue(Record* record) {
  const absl::StatusOr<bool> more = array_->Next(&record->text);
  if (more.ok() && !*more) return false;
  record->line = array_->line();
  record->where =
      absl::StrCat(name_, ":", record->line, " (record ", ++values_, ")");
  if (more.ok()) return true;
  status_ = absl::InvalidArgumentError(
      absl::StrCat(record->where, ": ", std::string(more.status().message())));
  return false;
}

bool RecordReader::NextPiece(Record* record) {
  record->plain = true;
  record->line = line_ + 1;
  record->where = absl::StrCat(name_, ":", record->line);
  record->text.resize(kPieceBytes);
  in_.read(record->text.data(), kPieceBytes);
  record->text.resize(in_.gcount());
  line_ += std::count(record->text.begin(), record->text.end(), '\n');
  for (std::string rest; in_ && ReadLine(&rest);) {
    record->text += rest;
    if (in_.eof()) break;
    record->text += '\n';
    ++line_;
    if (record->text.size() > 2 * kPieceBytes) break;
    // Tokens may span spaces and line breaks, but hardly a single line break.
    const size_t size = record->text.size();
    const char last = size > 1 ? record->text[size - 2] : '\n';
    if (!IsBlank({&last, 1}) && !std::isspace(in_.peek())) break;
  }
  return !record->text.empty();
}

}  // namespace qlora
