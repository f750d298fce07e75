// Turns one record into token ids and labels. Immutable: any number of threads
// may use one encoder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/formats/records.h"
#include "common/spec/job_spec.h"
#include "worker/text/text.h"

namespace qlora::trainer {

// What a chat template is given, of a record of format chat.
RecordJson TemplateInput(const RecordJson& record);

struct EncodedRecord {
  std::vector<int32_t> tokens;
  // Aligned with tokens.
  std::vector<int32_t> labels;
};

// True if a label counts for the loss: one that is not ignored, behind the
// first token (which nothing predicts).
bool HasTrainedToken(const int32_t* labels, int64_t length);

class RecordEncoder {
 public:
  // text may be null if only records of format tokens come; it must outlive
  // the encoder. now: what chat templates take for the present.
  RecordEncoder(const text::ModelText* text, LossOn loss_on, int64_t vocab_size,
                absl::Time now)
      : text_(text), loss_on_(loss_on), vocab_size_(vocab_size), now_(now) {}

  // chat               the template's rendering, special tokens as it writes
  //                    them; trained is a token that begins inside what the
  //                    assistant says (loss_on)
  // prompt_completion  prompt and completion in one, with the tokenizer's
  //                    special tokens and the end-of-sequence token behind;
  //                    trained is the completion, unless loss_on is all
  // alpaca             a chat of two messages if there is a chat template, else
  //                    prompt_completion of the Stanford Alpaca prompt
  // text               with the tokenizer's special tokens; all is trained
  // tokens             as they are; without labels all is trained
  //
  // InvalidArgument: the record is bad (the message does not name it).
  // FailedPrecondition: the tokenizer does not fit the model, or the chat
  // template was stopped; no record will do better. Unavailable: no thread for
  // the template.
  absl::StatusOr<EncodedRecord> Encode(const Record& record,
                                       DataFormat format) const;

  // Plain text: all is trained. before: the end of what the file has before it,
  // so that the tokens are those of the whole; empty at the beginning of the
  // file, which gets the tokenizer's special tokens.
  absl::StatusOr<std::vector<int32_t>> EncodePlain(std::string_view before,
                                                   std::string_view text) const;

 private:
  absl::StatusOr<EncodedRecord> EncodeChat(const RecordJson& record) const;
  absl::StatusOr<EncodedRecord> EncodeCompletion(
      const std::string& prompt, const std::string& completion) const;
  absl::StatusOr<EncodedRecord> EncodeAlpaca(const RecordJson& record) const;
  absl::StatusOr<EncodedRecord> EncodeTokens(const RecordJson& record) const;
  absl::Status CheckVocabulary(const std::vector<int32_t>& ids) const;

  const text::ModelText* const text_;
  const LossOn loss_on_;
  const int64_t vocab_size_;
  const absl::Time now_;
};

}  // namespace qlora::trainer
