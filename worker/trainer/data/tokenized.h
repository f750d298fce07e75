// Tokenized data files, before rows are made of them, and their cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/text/text.h"
#include "worker/trainer/data/dataset.h"

namespace qlora::trainer {

struct Tokenized {
  Documents documents;
  // Record r has documents [record_ends[r - 1], record_ends[r]): several if it
  // was split. A window of plain text counts as a record.
  std::vector<int64_t> record_ends;
  // Without documents, rows and tokens, which come with the rows.
  DatasetStats stats;
};

// Reads and tokenizes all records of the files, in order. Errors as LoadData's.
absl::StatusOr<Tokenized> Tokenize(const std::vector<DataFile>& files,
                                   const DataOptions& options,
                                   const text::ModelText* text);

// The same through options.cache_directory. Whoever comes first tokenizes while
// the other ranks of the node wait for its file; a file that is damaged is made
// anew. A cache that cannot be written is reported in the log and done without.
//
//   file = SHA-256 of the rest, 64 hex digits; header; int64 offsets; int64
//          record_ends; int32 tokens; int32 labels
//   header = length: uint64; JSON: {"offsets": n, "record_ends": n, stats...}
//
// all in the machine's byte order, named by the SHA-256 of what it depends on.
absl::StatusOr<Tokenized> TokenizeCached(const std::vector<DataFile>& files,
                                         const DataOptions& options,
                                         const text::ModelText* text);

}  // namespace qlora::trainer
