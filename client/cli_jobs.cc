// Flags of the verbs for jobs on their way.
#include "client/cli.h"
#include "client/verbs.h"

namespace qlora::client {
namespace {

constexpr char kJobHelp[] = "Id, unique prefix of it, name or @last";

void AddSubmit(Cli& cli) {
  auto options = std::make_shared<SubmitOptions>();
  CLI::App* verb = cli.app().add_subcommand("submit", "Queue a job");
  verb->add_option("-f,--file", options->file,
                   "Job file; - reads standard input")
      ->required();
  verb->add_option("--set", options->set,
                   "KEY=VALUE that replaces what the file says; repeatable")
      ->type_size(1)
      ->allow_extra_args(false);
  verb->add_option("--name", options->name, "Name of the job");
  CLI::Option* follow =
      verb->add_flag("--follow", options->follow,
                     "Stay until the job ends and show its steps");
  verb->add_flag("--detach", options->detach,
                 "Return once the job is queued (the default)")
      ->excludes(follow);
  AddTimeout(verb, &options->timeout,
             "With --follow: stay at most so long; the job goes on")
      ->needs(follow);
  verb->add_flag("--dry-run", options->dry_run,
                 "Let the server check everything, but queue nothing");
  cli.Do(verb, [options](Session& s) { return Submit(s, *options); });
}

void AddList(Cli& cli) {
  auto options = std::make_shared<ListOptions>();
  CLI::App* verb = cli.app().add_subcommand("list", "Jobs, newest first");
  verb->add_option("--state", options->states, "Only this state; repeatable")
      ->allow_extra_args(false);
  verb->add_option("-l,--label", options->labels,
                   "Only with KEY=VALUE; repeatable")
      ->allow_extra_args(false);
  verb->add_option("--limit", options->limit, "At most so many; 0 is all")
      ->check(AtLeast(0));
  cli.DoSimple(verb, [options](Session& s) { return ListJobs(s, *options); });
}

// A verb that takes one job and nothing else.
void AddJobVerb(Cli& cli, CLI::App& parent, const std::string& name,
                const std::string& help,
                absl::Status (*verb_function)(Session&, const std::string&)) {
  auto job = std::make_shared<std::string>();
  CLI::App* verb = parent.add_subcommand(name, help);
  verb->add_option("JOB", *job, kJobHelp)->required();
  cli.DoSimple(verb, [job, verb_function](Session& s) {
    return verb_function(s, *job);
  });
}

void AddFollow(CLI::App* verb, bool* follow, absl::Duration* timeout) {
  CLI::Option* flag = verb->add_flag(
      "-f,--follow", *follow,
      "Stay until the job ends, over restarts of the coordinator");
  AddTimeout(verb, timeout,
             "With --follow: stay at most so long, then exit with 101")
      ->needs(flag);
}

void AddLogs(Cli& cli) {
  auto options = std::make_shared<LogsOptions>();
  CLI::App* verb = cli.app().add_subcommand("logs", "What the ranks logged");
  verb->add_option("JOB", options->job, kJobHelp)->required();
  AddFollow(verb, &options->follow, &options->timeout);
  verb->add_option("--rank", options->rank, "Only this rank")
      ->check(AtLeast(0));
  verb->add_option("--tail", options->tail, "Only the last lines; 0 is all")
      ->check(AtLeast(0));
  cli.Do(verb, [options](Session& s) { return Logs(s, *options); });
}

void AddEvents(Cli& cli) {
  auto options = std::make_shared<EventsOptions>();
  CLI::App* verb = cli.app().add_subcommand("events", "What happened to a job");
  verb->add_option("JOB", options->job, kJobHelp)->required();
  AddFollow(verb, &options->follow, &options->timeout);
  cli.Do(verb, [options](Session& s) { return Events(s, *options); });
}

void AddMetrics(Cli& cli) {
  auto options = std::make_shared<MetricsOptions>();
  CLI::App* verb =
      cli.app().add_subcommand("metrics", "Loss and speed of each logged step");
  verb->add_option("JOB", options->job, kJobHelp)->required();
  verb->add_option("-o,--output", options->format,
                   "table, wide, csv, jsonl, json or yaml");
  verb->add_option(
          "--max-points", options->max_points,
          "Thin to so many, first and last included; 0: as many as one "
          "answer holds, which is all of most jobs")
      ->check(AtLeast(0));
  cli.DoSimple(verb, [options](Session& s) { return Metrics(s, *options); });
}

void AddPlot(Cli& cli) {
  auto options = std::make_shared<PlotOptions>();
  CLI::App* verb =
      cli.app().add_subcommand("plot", "Curves of loss and learning rate");
  verb->add_option("JOB", options->job, kJobHelp)->required();
  verb->add_flag("-w,--watch", options->watch, "Draw again as steps come in");
  cli.DoSimple(verb, [options](Session& s) { return Plot(s, *options); });
}

void AddCancel(Cli& cli) {
  struct Options {
    std::vector<std::string> jobs;
    std::string reason;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = cli.app().add_subcommand("cancel", "Stop jobs");
  verb->add_option("JOB", options->jobs, kJobHelp)->required();
  verb->add_option("--reason", options->reason, "Noted with the job");
  cli.Do(verb, [options](Session& s) {
    return Cancel(s, options->jobs, options->reason);
  });
}

void AddResume(Cli& cli) {
  auto jobs = std::make_shared<std::vector<std::string>>();
  CLI::App* verb = cli.app().add_subcommand(
      "resume", "Queue HELD jobs again, from their last checkpoint");
  verb->add_option("JOB", *jobs, kJobHelp)->required();
  cli.Do(verb, [jobs](Session& s) { return Resume(s, *jobs); });
}

void AddDelete(Cli& cli) {
  auto jobs = std::make_shared<std::vector<std::string>>();
  CLI::App* verb = cli.app().add_subcommand(
      "delete", "Remove jobs with their checkpoints, metrics and logs");
  verb->add_option("JOB", *jobs, kJobHelp)->required();
  cli.Do(verb, [jobs](Session& s) { return DeleteJobs(s, *jobs); });
}

void AddWait(Cli& cli) {
  struct Options {
    std::string job;
    absl::Duration timeout = absl::InfiniteDuration();
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = cli.app().add_subcommand(
      "wait",
      "Wait for a job's end; exits with 0 if it succeeded, 100 if it "
      "failed, 101 if it is not finished, 103 if it was cancelled");
  verb->add_option("JOB", options->job, kJobHelp)->required();
  AddTimeout(verb, &options->timeout, "At most so long: 90s, 5m, 1h30m");
  cli.Do(verb, [options](Session& s) {
    return Wait(s, options->job, options->timeout);
  });
}

void AddPlan(Cli& cli) {
  struct Options {
    std::string file;
    std::vector<std::string> set;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = cli.app().add_subcommand(
      "plan", "Count tokens and steps, predict memory, say where a job fits");
  verb->add_option("-f,--file", options->file,
                   "Job file; - reads standard input")
      ->required();
  verb->add_option("--set", options->set,
                   "KEY=VALUE that replaces what the file says; repeatable")
      ->allow_extra_args(false);
  cli.DoSimple(verb, [options](Session& s) {
    return Plan(s, options->file, options->set);
  });
}

}  // namespace

void AddJobVerbs(Cli& cli) {
  AddSubmit(cli);
  AddList(cli);
  AddJobVerb(cli, cli.app(), "get", "One job", GetJob);
  AddJobVerb(cli, cli.app(), "describe", "Everything about a job", Describe);
  AddLogs(cli);
  AddEvents(cli);
  AddMetrics(cli);
  AddPlot(cli);
  AddCancel(cli);
  AddResume(cli);
  AddDelete(cli);
  AddWait(cli);
  AddPlan(cli);
  CLI::App* checkpoint =
      cli.app().add_subcommand("checkpoint", "Committed checkpoints");
  checkpoint->require_subcommand(1);
  AddJobVerb(cli, *checkpoint, "list", "Checkpoints of a job, oldest first",
             CheckpointList);
}

}  // namespace qlora::client
