#include "worker/trainer/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "worker/trainer/data/packing.h"
#include "worker/trainer/data/sampler.h"
#include "worker/trainer/data/tokenized.h"

namespace qlora::trainer {
namespace {

// Apart from the epochs' streams.
constexpr uint64_t kEvalSplitStream = std::numeric_limits<uint64_t>::max();

absl::Status CheckSources(const DataOptions& options, const char* key,
                          const std::vector<DataFile>& files,
                          const text::ModelText* text) {
  for (size_t i = 0; i < files.size(); ++i) {
    const DataFormat format = files[i].format;
    if (format != DataFormat::kTokens && text == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, "[", i, "] (", files[i].name,
                       ") needs a tokenizer, and the model has none"));
    }
    if (format == DataFormat::kChat && text->chat_template == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, "[", i, "] (", files[i].name,
                       ") has format chat, but ", text->tokenizer->directory(),
                       " has no chat template; set data.chat_template"));
    }
  }
  if (options.max_seq_len < 2) {
    return absl::InvalidArgumentError("data.max_seq_len has to be at least 2");
  }
  return absl::OkStatus();
}

// Moves records that `chosen` names to the second part.
std::pair<Tokenized, Tokenized> Divide(const Tokenized& all,
                                       const std::vector<bool>& chosen) {
  std::pair<Tokenized, Tokenized> out;
  int64_t begin = 0;
  for (size_t r = 0; r < all.record_ends.size(); ++r) {
    Documents& to = (chosen[r] ? out.second : out.first).documents;
    for (int64_t d = begin; d < all.record_ends[r]; ++d) {
      const int64_t at = all.documents.offsets[d];
      to.Append(all.documents.tokens.data() + at,
                all.documents.labels.data() + at, all.documents.length(d));
    }
    begin = all.record_ends[r];
  }
  return out;
}

absl::Status SetAside(const DataOptions& options, Tokenized* train,
                      Tokenized* eval) {
  const auto records = static_cast<int64_t>(train->record_ends.size());
  if (records < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.eval_fraction needs at least 2 records to divide, and ",
        absl::StrJoin(options.train, ", ",
                      [](std::string* out, const DataFile& file) {
                        out->append(file.name);
                      }),
        " has ", records,
        " to use: add records, or take data.eval_fraction out"));
  }
  const auto wanted =
      static_cast<int64_t>(std::ceil(records * options.eval_fraction));
  const int64_t count = std::clamp<int64_t>(wanted, 1, records - 1);
  const std::vector<int64_t> order =
      Permutation(records, options.seed, kEvalSplitStream);
  std::vector<bool> chosen(records, false);
  for (int64_t i = 0; i < count; ++i) chosen[order[i]] = true;
  auto [kept, aside] = Divide(*train, chosen);
  const Documents& from = aside.documents;
  for (int64_t d = 0; d < from.size(); ++d) {
    const int64_t at = from.offsets[d];
    eval->documents.Append(from.tokens.data() + at, from.labels.data() + at,
                           from.length(d));
  }
  eval->stats.records += count;
  train->documents = std::move(kept.documents);
  train->stats.records -= count;
  return absl::OkStatus();
}

}  // namespace

DataOptions DataOptionsFromSpec(const JobSpec& spec) {
  const auto files = [](const std::vector<DataSource>& sources) {
    std::vector<DataFile> out;
    for (const DataSource& source : sources) {
      out.push_back(
          {.name = source.path, .path = source.path, .format = source.format});
    }
    return out;
  };
  DataOptions options;
  options.train = files(spec.data.train);
  options.eval = files(spec.data.eval);
  options.eval_fraction = spec.data.eval_fraction;
  options.max_seq_len = spec.data.max_seq_len;
  options.packing = spec.data.packing;
  options.loss_on = spec.data.loss_on;
  options.on_bad_record = spec.data.on_bad_record;
  options.on_too_long = spec.data.on_too_long;
  options.seed = spec.train.seed;
  return options;
}

void Documents::Append(const int32_t* token, const int32_t* label,
                       int64_t length) {
  tokens.insert(tokens.end(), token, token + length);
  labels.insert(labels.end(), label, label + length);
  offsets.push_back(static_cast<int64_t>(tokens.size()));
}

Dataset::Dataset(Documents documents, int max_seq_len, bool packing,
                 DatasetStats stats)
    : documents_(std::move(documents)), stats_(std::move(stats)) {
  std::vector<int64_t> lengths(documents_.size());
  for (int64_t d = 0; d < documents_.size(); ++d) {
    lengths[d] = documents_.length(d);
    stats_.longest_document = std::max(stats_.longest_document, lengths[d]);
    const int64_t begin = documents_.offsets[d];
    for (int64_t i = begin + 1; i < documents_.offsets[d + 1]; ++i) {
      stats_.trained_tokens += documents_.labels[i] != kIgnoredLabel;
    }
    if (!packing) rows_.push_back({d});
  }
  if (packing) rows_ = PackFirstFit(lengths, max_seq_len);
  stats_.documents = documents_.size();
  stats_.rows = size();
  stats_.total_tokens = static_cast<int64_t>(documents_.tokens.size());
}

int64_t Dataset::memory_bytes() const {
  // A row is an array of its own beside the allocator's header.
  constexpr int64_t kRow =
      sizeof(decltype(rows_)::value_type) + 2 * sizeof(int64_t);
  return stats_.total_tokens * 2 * int64_t{sizeof(int32_t)} +
         documents_.size() * 2 * int64_t{sizeof(int64_t)} + size() * kRow;
}

Row Dataset::row(int64_t i) const {
  Row row;
  for (const int64_t d : rows_[i]) {
    const int64_t begin = documents_.offsets[d];
    const int64_t end = documents_.offsets[d + 1];
    row.tokens.insert(row.tokens.end(), documents_.tokens.begin() + begin,
                      documents_.tokens.begin() + end);
    row.labels.insert(row.labels.end(), documents_.labels.begin() + begin,
                      documents_.labels.begin() + end);
    row.document_lengths.push_back(static_cast<int32_t>(end - begin));
  }
  return row;
}

DatasetStats LoadedData::records() const {
  DatasetStats sum = train.stats();
  const DatasetStats& more = eval.stats();
  sum.records += more.records;
  sum.bad += more.bad;
  sum.truncated += more.truncated;
  sum.split += more.split;
  sum.dropped += more.dropped;
  sum.bad_messages.insert(sum.bad_messages.end(), more.bad_messages.begin(),
                          more.bad_messages.end());
  return sum;
}

std::string RecordsText(const DatasetStats& stats) {
  return absl::StrCat(stats.records, " read, ", stats.bad, " bad (skipped), ",
                      stats.truncated, " truncated, ", stats.split, " split, ",
                      stats.dropped, " dropped");
}

absl::StatusOr<LoadedData> LoadData(const DataOptions& options,
                                    const text::ModelText* text) {
  RETURN_IF_ERROR(CheckSources(options, "data.train", options.train, text));
  RETURN_IF_ERROR(CheckSources(options, "data.eval", options.eval, text));
  ASSIGN_OR_RETURN(Tokenized train,
                   TokenizeCached(options.train, options, text));
  Tokenized eval;
  if (!options.eval.empty()) {
    ASSIGN_OR_RETURN(eval, TokenizeCached(options.eval, options, text));
  }
  if (options.eval_fraction > 0) {
    RETURN_IF_ERROR(SetAside(options, &train, &eval));
  }
  return LoadedData{
      .train = Dataset(std::move(train.documents), options.max_seq_len,
                       options.packing, std::move(train.stats)),
      .eval = Dataset(std::move(eval.documents), options.max_seq_len,
                      options.packing, std::move(eval.stats))};
}

}  // namespace qlora::trainer
