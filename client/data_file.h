// What can be said of a data file before it travels.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace qlora::client {

// OK if the file has more than blank lines. InvalidArgument, naming the file as
// `name`, if not, or if it is a directory or no regular file, or binary as far
// as was read: little further than the first character of a record.
absl::Status CheckDataFile(const std::string& path, const std::string& name);

}  // namespace qlora::client
