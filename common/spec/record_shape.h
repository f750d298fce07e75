// What a record of a data file has to hold, by its format
// (docs/formats/data.md). Stateless; any thread.
#pragma once

#include "absl/status/status.h"
#include "common/formats/records.h"
#include "common/spec/job_spec.h"

namespace qlora {

// InvalidArgument that does not name the record, unless it is an object with
// the format's keys, each of the right type. Roles, token ids and what else
// depends on the model are not looked at.
absl::Status CheckRecord(const RecordJson& record, DataFormat format);

// The same where nobody has said which format it is: OK if one fits. Else what
// is wrong with it in the first format whose keys it has.
absl::Status CheckRecordOfAnyFormat(const RecordJson& record);

}  // namespace qlora
