// qloractl's verbs: one function each, in verbs/. A verb returns the error that
// main prints; those whose exit code says how a job ended return it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"

namespace qlora::client {

struct SubmitOptions {
  std::string file;
  std::vector<std::string> set;
  std::string name;
  // Detached is the default; the flag is for saying so.
  bool follow = false;
  bool detach = false;
  bool dry_run = false;
  // With follow.
  absl::Duration timeout = absl::InfiniteDuration();
};
absl::StatusOr<int> Submit(Session& session, const SubmitOptions& options);

struct ListOptions {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  // 0: all.
  int limit = 0;
};
absl::Status ListJobs(Session& session, const ListOptions& options);
absl::Status GetJob(Session& session, const std::string& job);
absl::Status Describe(Session& session, const std::string& job);

struct LogsOptions {
  std::string job;
  bool follow = false;
  // -1: every rank.
  int rank = -1;
  int64_t tail = 0;
  absl::Duration timeout = absl::InfiniteDuration();
};
absl::StatusOr<int> Logs(Session& session, const LogsOptions& options);

struct EventsOptions {
  std::string job;
  bool follow = false;
  absl::Duration timeout = absl::InfiniteDuration();
};
absl::StatusOr<int> Events(Session& session, const EventsOptions& options);

struct MetricsOptions {
  std::string job;
  // "csv" or one of the formats of -o; empty: the session's.
  std::string format;
  int max_points = 0;
};
absl::Status Metrics(Session& session, const MetricsOptions& options);
// The points in one of the formats of -o; for `plot` too.
absl::Status PrintMetrics(Session& session, const std::string& job,
                          const Output& output, int max_points);

struct PlotOptions {
  std::string job;
  bool watch = false;
};
absl::Status Plot(Session& session, const PlotOptions& options);

// Each job gets its turn, whatever came of the others. They print their errors
// and return the first one's exit code.
int Cancel(Session& session, const std::vector<std::string>& jobs,
           const std::string& reason);
int Resume(Session& session, const std::vector<std::string>& jobs);
int DeleteJobs(Session& session, const std::vector<std::string>& jobs);

// timeout: infinite to wait until the end.
absl::StatusOr<int> Wait(Session& session, const std::string& job,
                         absl::Duration timeout);

absl::Status CheckpointList(Session& session, const std::string& job);

struct PullOptions {
  std::string job;
  std::string to;
  bool force = false;
};
absl::Status AdapterList(Session& session);
absl::Status AdapterPull(Session& session, const PullOptions& options);
absl::Status AdapterVerify(Session& session, const std::string& job);

struct GenerateOptions {
  std::string job;
  std::string model;
  std::vector<std::string> prompts;
  bool no_adapter = false;
  bool compare = false;
  bool chat = false;
  int max_new_tokens = 128;
  double temperature = 0;
  double top_p = 1;
  uint64_t seed = 0;
};
absl::Status Generate(Session& session, const GenerateOptions& options);

struct ModelImportOptions {
  std::string directory;
  std::string name;
  bool upload = false;
};
absl::Status ModelImport(Session& session, const ModelImportOptions& options);
absl::Status ModelList(Session& session);
absl::Status ModelInspect(Session& session, const std::string& name);
absl::Status ModelDelete(Session& session, const std::string& name);
absl::Status ModelPull(Session& session, const PullOptions& options);

struct DatasetPushOptions {
  std::string file;
  // Empty: made of the file's.
  std::string name;
  // A name that means other content may mean this from now on.
  bool replace = false;
  // Records that no format has may travel too.
  bool allow_bad = false;
};
absl::Status DatasetPush(Session& session, const DatasetPushOptions& options);
absl::Status DatasetList(Session& session);
absl::Status DatasetInspect(Session& session, const std::string& name);
absl::Status DatasetDelete(Session& session, const std::string& name);

absl::Status NodeList(Session& session);
absl::Status NodeRemove(Session& session, const std::string& name);

absl::Status Plan(Session& session, const std::string& file,
                  const std::vector<std::string>& set);
absl::Status Explain(Session& session, const std::string& key);
struct InitOptions {
  std::string file = "job.yaml";
  std::string name = "my-job";
  // Empty: a placeholder. Directories and files are as seen from here.
  std::string model;
  std::string data;
  bool force = false;
};
absl::Status Init(Session& session, const InitOptions& options);

absl::Status ContextList(Session& session);
absl::Status ContextUse(Session& session, const std::string& name);
absl::Status ContextSet(Session& session, const std::string& name,
                        const std::string& endpoint);
absl::Status ContextDelete(Session& session, const std::string& name);

struct LocalStartOptions {
  // Empty: what the configuration says, then the default.
  std::string data_dir;
  // 0: one device for every processor that the worker finds.
  int cpu_ranks = 0;
  // Empty: the current directory.
  std::vector<std::string> model_roots;
  bool foreground = false;
};
absl::Status LocalStart(Session& session, const LocalStartOptions& options);
absl::Status LocalStatus(Session& session, const std::string& data_dir);
absl::Status LocalStop(Session& session, const std::string& data_dir,
                       absl::Duration timeout);
absl::Status LocalLogs(Session& session, const std::string& data_dir,
                       bool follow);

absl::Status Version(Session& session);

}  // namespace qlora::client
