// Training data in memory: documents as token ids with labels, packed into
// rows. docs/formats/data.md describes data files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/spec/job_spec.h"
#include "worker/text/text.h"
#include "worker/trainer/data/batch.h"

namespace qlora::trainer {

struct DataFile {
  // As the job file names it: what messages call it.
  std::string name;
  // Where it lies.
  std::string path;
  DataFormat format = DataFormat::kChat;
};

struct DataOptions {
  std::vector<DataFile> train;
  std::vector<DataFile> eval;
  // Share of the training records that is set aside for evaluation, [0, 1).
  double eval_fraction = 0;
  int max_seq_len = 2048;
  bool packing = true;
  LossOn loss_on = LossOn::kAssistant;
  OnBadRecord on_bad_record = OnBadRecord::kFail;
  OnTooLong on_too_long = OnTooLong::kTruncate;
  uint64_t seed = 42;
  // Of the model: every token id must be below it.
  int64_t vocab_size = 0;
  // What chat templates take for the present.
  absl::Time now = absl::UnixEpoch();
  // Threads that tokenize.
  int threads = 1;
  // Keeps the tokenized data here under a name made of its content, for
  // restarts and for the other ranks of the node, which may all use it at once;
  // empty: no cache. Whoever owns the directory bounds it, by the time of the
  // last use (mtime); files may go at any time.
  std::string cache_directory;
};

// Fills what the job file says; paths still are the job file's.
DataOptions DataOptionsFromSpec(const JobSpec& spec);

// What was read, for reports. Counts are of records unless said otherwise.
struct DatasetStats {
  int64_t records = 0;
  // Skipped (on_bad_record: skip), or the reason why loading failed.
  int64_t bad = 0;
  // Longer than max_seq_len.
  int64_t truncated = 0;
  int64_t split = 0;
  int64_t dropped = 0;
  int64_t documents = 0;
  int64_t rows = 0;
  int64_t total_tokens = 0;
  // Targets that count for the loss: labels that are not ignored, without the
  // first of each document, which nothing predicts.
  int64_t trained_tokens = 0;
  int64_t longest_document = 0;
  // The first few bad records: "FILE:LINE: what is wrong".
  std::vector<std::string> bad_messages;
};

// Documents laid end to end: document d is [offsets[d], offsets[d + 1]).
struct Documents {
  std::vector<int32_t> tokens;
  // Aligned with tokens; kIgnoredLabel where not trained.
  std::vector<int32_t> labels;
  std::vector<int64_t> offsets = {0};

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t length(int64_t d) const { return offsets[d + 1] - offsets[d]; }
  void Append(const int32_t* token, const int32_t* label, int64_t length);
};

// Immutable; any number of threads may use it.
class Dataset {
 public:
  Dataset() = default;
  // Rows of at most max_seq_len tokens: with packing by first fit in the order
  // of the documents, else one document a row.
  Dataset(Documents documents, int max_seq_len, bool packing,
          DatasetStats stats);

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  // Row i, from 0, in file order (of a packed row: of its first document).
  Row row(int64_t i) const;
  const DatasetStats& stats() const { return stats_; }
  // What it holds, about.
  int64_t memory_bytes() const;

 private:
  Documents documents_;
  // Documents of each row.
  std::vector<std::vector<int64_t>> rows_;
  DatasetStats stats_;
};

struct LoadedData {
  Dataset train;
  // Empty if the job has no evaluation data.
  Dataset eval;

  int64_t memory_bytes() const {
    return train.memory_bytes() + eval.memory_bytes();
  }
  // The counts of records of both.
  DatasetStats records() const;
};

// "58 read, 2 bad (skipped), 1 truncated, 0 split, 0 dropped".
std::string RecordsText(const DatasetStats& stats);

// Reads, tokenizes, masks, splits and packs. `text` may be null if all files
// have format tokens. Every call with the same files and options gives the
// same rows.
//
// Errors: NotFound (a data file), InvalidArgument (bad records with
// on_bad_record: fail, with file, line and count; nothing to train on),
// FailedPrecondition (a tokenizer that does not fit the vocabulary, a chat
// template that was stopped), Unavailable (no thread for a template).
// Messages name file and line and say what to do.
absl::StatusOr<LoadedData> LoadData(const DataOptions& options,
                                    const text::ModelText* text);

}  // namespace qlora::trainer
