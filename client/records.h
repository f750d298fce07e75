// What can be said of the records of a data file before it travels: only a job
// knows their format and the model that reads them.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace qlora::client {

// OK if each record could be one of some format (docs/job-file.md, data.train):
// an object a line, or in one array, with a format's keys; a line of plain text
// that is UTF-8. InvalidArgument lists the first bad ones, one a line, as
// "NAME:LINE: why". Reads the whole file.
absl::Status CheckRecords(const std::string& path, const std::string& name);

}  // namespace qlora::client
