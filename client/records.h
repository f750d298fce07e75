// What can be said of the records of a data file before it travels: only a job
// knows their format and the model that reads them.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace qlora::client {

// OK if each record could be one of some format (docs/job-file.md, data.train):
// an object a line, or in one array, with a format's keys; a line of plain text
// that is UTF-8. InvalidArgument lists the first reasons, one a line, each with
// the records that it holds for: "NAME:LINE, LINE and 7 more: why". *any_good:
// a job that skips bad records would have some left. Reads the whole file;
// other errors as RecordReader's.
absl::Status CheckRecords(const std::string& path, const std::string& name,
                          bool* any_good);

}  // namespace qlora::client
