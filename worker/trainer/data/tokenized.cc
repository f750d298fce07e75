#include "worker/trainer/data/tokenized.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/formats/records.h"
#include "worker/trainer/data/encoder.h"

namespace qlora::trainer {
namespace {

constexpr int kRecordsAtOnce = 4096;
// A piece of plain text is tokenized behind the line before it, if that is not
// longer.
constexpr size_t kMaxLineBefore = 4096;
constexpr size_t kMessagesKept = 5;
constexpr size_t kMaxMessage = 600;

// Each on a line of its own, then how many there are besides.
std::string Lines(const std::vector<std::string>& messages, int64_t count) {
  std::string text;
  for (const std::string& message : messages) {
    absl::StrAppend(&text, "\n", message);
  }
  const int64_t more = count - static_cast<int64_t>(messages.size());
  if (more > 0) absl::StrAppend(&text, "\nand ", more, " more");
  return text;
}

void ParallelFor(size_t size, int threads,
                 const std::function<void(size_t)>& body) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < size;) body(i);
  };
  std::vector<std::jthread> helpers;
  const size_t count = std::min<size_t>(std::max(threads, 1), size);
  for (size_t t = 1; t < count; ++t) helpers.emplace_back(work);
  work();
}

// With its line break.
std::string LastLine(std::string_view text) {
  const std::string_view body = text.substr(0, text.size() - 1);
  const std::string_view line = text.substr(body.rfind('\n') + 1);
  return line.size() > kMaxLineBefore ? "\n" : std::string(line);
}

class Tokenizing {
 public:
  Tokenizing(const DataOptions& options, const text::ModelText* text)
      : options_(options),
        encoder_(text, options.loss_on, options.vocab_size, options.now) {}

  absl::Status AddFile(const DataFile& file);
  absl::StatusOr<Tokenized> Finish();

 private:
  absl::Status AddRecord(const Record& record,
                         const absl::StatusOr<EncodedRecord>& encoded);
  absl::Status AddPiece(const Record& record);
  void AddWindow(const int32_t* tokens, int64_t length);
  // Appends the record's documents; false if none has a trained token.
  bool AddDocuments(const EncodedRecord& record);
  absl::Status Refuse(const std::string& where, const absl::Status& why);
  // Why the file gave no document and what to do; `before`: the counts before
  // it.
  std::string WhyNothing(const DataFile& file,
                         const DatasetStats& before) const;

  const DataOptions& options_;
  const RecordEncoder encoder_;
  Tokenized out_;
  // Messages about files without a document.
  std::vector<std::string> nothing_;
  // Tokens of plain text behind the last whole window.
  std::vector<int32_t> rest_;
  // The last line of the plain text so far; empty at the beginning of a file.
  std::string line_before_;
};

absl::Status Tokenizing::AddFile(const DataFile& file) {
  const DatasetStats before = out_.stats;
  const int64_t documents = out_.documents.size();
  ASSIGN_OR_RETURN(
      const std::unique_ptr<RecordReader> reader,
      RecordReader::Open(file.path, file.name,
                         /*may_be_plain=*/file.format == DataFormat::kText));
  line_before_.clear();
  for (;;) {
    ASSIGN_OR_RETURN(const std::vector<Record> records,
                     reader->Next(kRecordsAtOnce));
    if (records.empty()) break;
    if (records[0].plain) {
      RETURN_IF_ERROR(AddPiece(records[0]));
      continue;
    }
    std::vector<std::optional<absl::StatusOr<EncodedRecord>>> encoded(
        records.size());
    ParallelFor(records.size(), options_.threads, [&](size_t i) {
      encoded[i] = encoder_.Encode(records[i], file.format);
    });
    for (size_t i = 0; i < records.size(); ++i) {
      RETURN_IF_ERROR(AddRecord(records[i], *encoded[i]));
    }
  }
  AddWindow(rest_.data(), static_cast<int64_t>(rest_.size()));
  rest_.clear();
  if (out_.documents.size() == documents) {
    nothing_.push_back(WhyNothing(file, before));
  }
  return absl::OkStatus();
}

std::string Tokenizing::WhyNothing(const DataFile& file,
                                   const DatasetStats& before) const {
  const DatasetStats& stats = out_.stats;
  const std::string name = absl::StrCat("data file ", file.name);
  if (stats.records == before.records) {
    return absl::StrCat(
        name, " is empty",
        file.format == DataFormat::kText ? " or has a single token" : "",
        ": add records to it, or take it out of the job file");
  }
  const int64_t bad = stats.bad - before.bad;
  const int64_t dropped = stats.dropped - before.dropped;
  std::string text = absl::StrCat(
      name, " has no record to use: ", stats.records - before.records,
      " read, ", bad, " bad (skipped), ", dropped,
      " longer than data.max_seq_len (dropped)");
  if (dropped > 0) {
    absl::StrAppend(&text, "; raise data.max_seq_len (", options_.max_seq_len,
                    "), or set data.on_too_long to truncate or split");
  }
  if (bad > 0) {
    const std::vector<std::string> why(
        stats.bad_messages.begin() + before.bad_messages.size(),
        stats.bad_messages.end());
    absl::StrAppend(&text, "; correct the bad ones:", Lines(why, bad));
  }
  return text;
}

absl::Status Tokenizing::AddPiece(const Record& record) {
  const absl::StatusOr<std::vector<int32_t>> ids =
      encoder_.EncodePlain(line_before_, record.text);
  line_before_ = ids.ok() ? LastLine(record.text) : "\n";
  if (!ids.ok()) {
    ++out_.stats.records;
    return Refuse(record.where, ids.status());
  }
  rest_.insert(rest_.end(), ids->begin(), ids->end());
  const auto window = static_cast<size_t>(options_.max_seq_len);
  size_t begin = 0;
  for (; rest_.size() - begin >= window; begin += window) {
    AddWindow(rest_.data() + begin, options_.max_seq_len);
  }
  rest_.erase(rest_.begin(), rest_.begin() + static_cast<int64_t>(begin));
  return absl::OkStatus();
}

void Tokenizing::AddWindow(const int32_t* tokens, int64_t length) {
  // A single token predicts nothing.
  if (length < 2) return;
  ++out_.stats.records;
  out_.documents.Append(tokens, tokens, length);
  out_.record_ends.push_back(out_.documents.size());
}

absl::Status Tokenizing::AddRecord(
    const Record& record, const absl::StatusOr<EncodedRecord>& encoded) {
  ++out_.stats.records;
  if (!encoded.ok()) return Refuse(record.where, encoded.status());
  const auto length = static_cast<int64_t>(encoded->tokens.size());
  if (!HasTrainedToken(encoded->labels.data(), length)) {
    return Refuse(record.where,
                  absl::InvalidArgumentError(
                      "no token of it is trained: nothing in it is an answer "
                      "(see data.loss_on)"));
  }
  if (length > options_.max_seq_len &&
      options_.on_too_long == OnTooLong::kDrop) {
    ++out_.stats.dropped;
    return absl::OkStatus();
  }
  if (AddDocuments(*encoded)) return absl::OkStatus();
  return Refuse(
      record.where,
      absl::InvalidArgumentError(absl::StrCat(
          "has ", Plural(length, "token"),
          " and none that is trained among the first ", options_.max_seq_len,
          "; raise data.max_seq_len or set data.on_too_long: drop or split")));
}

bool Tokenizing::AddDocuments(const EncodedRecord& record) {
  const auto length = static_cast<int64_t>(record.tokens.size());
  const int64_t most = options_.max_seq_len;
  const bool split = options_.on_too_long == OnTooLong::kSplit;
  const int64_t before = out_.documents.size();
  for (int64_t begin = 0; begin < (split ? length : 1); begin += most) {
    const int64_t part = std::min(most, length - begin);
    if (!HasTrainedToken(record.labels.data() + begin, part)) continue;
    out_.documents.Append(record.tokens.data() + begin,
                          record.labels.data() + begin, part);
  }
  if (out_.documents.size() == before) return false;
  if (length > most) ++(split ? out_.stats.split : out_.stats.truncated);
  out_.record_ends.push_back(out_.documents.size());
  return true;
}

absl::Status Tokenizing::Refuse(const std::string& where,
                                const absl::Status& why) {
  // A record or a template may have put anything into it.
  const std::string message = Abridged(
      absl::StrCat(where, ": ", std::string(why.message())), kMaxMessage);
  // The tokenizer or the template itself is wrong: no skipping of records
  // helps, and what a stopped template leaves out would depend on timing.
  if (!absl::IsInvalidArgument(why)) return absl::Status(why.code(), message);
  ++out_.stats.bad;
  if (out_.stats.bad_messages.size() < kMessagesKept) {
    out_.stats.bad_messages.push_back(message);
  }
  return absl::OkStatus();
}

absl::StatusOr<Tokenized> Tokenizing::Finish() {
  const DatasetStats& stats = out_.stats;
  if (stats.bad > 0 && options_.on_bad_record == OnBadRecord::kFail) {
    return absl::InvalidArgumentError(
        absl::StrCat(Plural(stats.bad, "bad record"), " of ", stats.records,
                     " (correct the data, or set data.on_bad_record: skip):",
                     Lines(stats.bad_messages, stats.bad)));
  }
  if (!nothing_.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(nothing_, "\n"));
  }
  return std::move(out_);
}

}  // namespace

absl::StatusOr<Tokenized> Tokenize(const std::vector<DataFile>& files,
                                   const DataOptions& options,
                                   const text::ModelText* text) {
  Tokenizing tokenizing(options, text);
  for (const DataFile& file : files) {
    RETURN_IF_ERROR(tokenizing.AddFile(file));
  }
  return tokenizing.Finish();
}

}  // namespace qlora::trainer
