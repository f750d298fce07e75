// From a job file on disk to what CreateJob and PlanJob take.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/terminal.h"
#include "common/spec/job_spec.h"
#include "qlora/v1/job.pb.h"

namespace qlora::client {

struct JobInput {
  // With --set and --name applied and a relative model directory made absolute.
  std::string yaml;
  JobSpec spec;
  // Where the job file's relative paths begin.
  std::string directory;
};

// Reads FILE ("-": standard input, paths relative to the current directory),
// applies --set and --name, and checks everything that can be checked here.
// InvalidArgument with line and column of each mistake, or for data without a
// record; NotFound for the job file or a relative path in it.
absl::StatusOr<JobInput> ReadJob(const std::string& file,
                                 const std::vector<std::string>& set,
                                 const std::string& name);

// "qloractl explain KEY" for the nearest section or key to a place in the job
// file, such as "data.train[0].path"; without a key if none is near.
std::string ExplainCommand(std::string place);

// Paths that the daemons must be able to read, as far as the client knows.
std::vector<std::string> ServerPaths(const JobSpec& spec);

// Uploads the files that the job file names and that exist here. An absolute
// path below a root of a registered worker is left to the worker, but for a
// chat template.
absl::StatusOr<std::vector<v1::UploadedInput>> UploadInputs(
    Connection& connection, const JobInput& job, ProgressLine& progress);

}  // namespace qlora::client
