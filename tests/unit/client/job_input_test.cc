#include "client/job_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "common/base/files.h"
#include "tests/unit/client/fake_server.h"

namespace qlora::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class JobInputTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/job-input-" + std::to_string(getpid());
    ASSERT_TRUE(RemoveRecursively(directory_).ok());
    Write("rows.jsonl", "{}");
    Write("root/there.jsonl", "{}");
    Write("root/chat.jinja", "{{ messages }}");
  }
  void TearDown() override { ASSERT_TRUE(RemoveRecursively(directory_).ok()); }

  void Write(const std::string& name, const std::string& content) {
    ASSERT_TRUE(CreateDirectories(directory_ + "/root").ok());
    ASSERT_TRUE(WriteFileAtomically(directory_ + "/" + name, content).ok());
  }

  absl::StatusOr<JobInput> Read(const std::string& data) {
    Write("job.yaml", absl::StrCat("apiVersion: qlora/v1\nname: n\n"
                                   "model: tiny\ndata: {",
                                   data, "}\n"));
    return ReadJob(directory_ + "/job.yaml", {}, "");
  }

  // The paths that are uploaded for a job that names them.
  std::vector<std::string> Uploaded(const std::string& data) {
    const auto job = Read(data);
    EXPECT_TRUE(job.ok()) << job.status();
    Connection connection(server_.endpoint);
    ProgressLine progress(false);
    const auto inputs = UploadInputs(connection, *job, progress);
    EXPECT_TRUE(inputs.ok()) << inputs.status();
    std::vector<std::string> paths;
    for (const v1::UploadedInput& input : *inputs) {
      paths.push_back(input.path());
    }
    return paths;
  }

  FakeServer server_;
  std::string directory_;
};

TEST_F(JobInputTest, AbsolutePaths_AreUploadedUnlessAWorkerHasThem) {
  const std::string here = directory_ + "/rows.jsonl";
  const std::string there = directory_ + "/root/there.jsonl";
  const std::string files =
      absl::StrCat("train: [{path: rows.jsonl, format: text}, {path: ", here,
                   ", format: text}, {path: ", there,
                   ", format: text}, {path: /no/such.jsonl, format: text}]");
  EXPECT_THAT(Uploaded(files), ElementsAre("rows.jsonl", here, there));
  server_.nodes.roots = {directory_ + "/root", "/no/such/root"};
  EXPECT_THAT(Uploaded(files), ElementsAre("rows.jsonl", here));
}

TEST_F(JobInputTest, ChatTemplate_IsUploadedFromAnywhere) {
  server_.nodes.roots = {directory_ + "/root"};
  const std::string path = directory_ + "/root/chat.jinja";
  EXPECT_THAT(
      Uploaded(absl::StrCat("train: [{path: rows.jsonl, format: chat}], "
                            "chat_template: ",
                            path)),
      ElementsAre("rows.jsonl", path));
}

TEST_F(JobInputTest, RelativePathThatIsNotHere_IsNamed) {
  const auto status = Read(
                          "train: [{path: rows.jsonl, format: chat}], "
                          "chat_template: chat.jinja")
                          .status();
  EXPECT_EQ(ExitCodeFor(status), kExitNotFound);
  EXPECT_THAT(FormatError(status),
              HasSubstr("cannot find chat.jinja, which the job file names"));
  EXPECT_THAT(FormatError(status),
              HasSubstr("hint: qloractl explain data.chat_template\n"));
}

TEST_F(JobInputTest, DataWithoutARecord_IsRefusedBeforeItTravels) {
  Write("empty.jsonl", "");
  Write("blank.jsonl", "\n \n");
  const struct {
    const char* path;
    const char* cause;
  } cases[] = {
      {"empty.jsonl", "data file empty.jsonl is empty: add records to it"},
      {"blank.jsonl", "data file blank.jsonl has only blank lines: add "},
      {"root", "root is a directory; data is one file"},
  };
  for (const auto& [path, cause] : cases) {
    for (const std::string key : {"train", "eval"}) {
      const std::string other = key == "train" ? "eval" : "train";
      const auto status =
          Read(absl::StrCat(other, ": [{path: rows.jsonl, format: chat}], ",
                            key, ": [{path: ", path, ", format: chat}]"))
              .status();
      EXPECT_EQ(ExitCodeFor(status), kExitValidation) << path;
      EXPECT_THAT(
          FormatError(status),
          HasSubstr(absl::StrCat("error: cannot use ", path, " as data.", key,
                                 "\ncause: ", cause)));
    }
  }
}

TEST_F(JobInputTest, RelativeBase_IsADirectoryBesideTheFileOrAName) {
  const auto base = [&](const std::string& base) {
    Write(
        "job.yaml",
        absl::StrCat("apiVersion: qlora/v1\nname: n\nmodel: ", base,
                     "\ndata: {train: [{path: rows.jsonl, format: text}]}\n"));
    return ReadJob(directory_ + "/job.yaml", {}, "");
  };
  EXPECT_EQ(base("./root")->spec.model.base,
            std::filesystem::canonical(directory_ + "/root"));
  EXPECT_EQ(base("tiny")->spec.model.base, "tiny");
  EXPECT_EQ(base("/no/such")->spec.model.base, "/no/such");
  const auto status = base("../root").status();
  EXPECT_EQ(ExitCodeFor(status), kExitNotFound);
  EXPECT_THAT(FormatError(status),
              HasSubstr(absl::StrCat(
                  "cannot find ../root, which the job file names\ncause: no "
                  "such directory: ",
                  testing::TempDir())));
}

}  // namespace
}  // namespace qlora::client
