#include "client/errors.h"

#include <gtest/gtest.h>

namespace qlora::client {
namespace {

TEST(ExitCodeFor, EachCode_HasItsOwn) {
  EXPECT_EQ(ExitCodeFor(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeFor(absl::UnknownError("")), 1);
  EXPECT_EQ(ExitCodeFor(absl::InternalError("")), 1);
  EXPECT_EQ(ExitCodeFor(absl::DataLossError("")), 1);
  EXPECT_EQ(ExitCodeFor(UsageError("")), 2);
  EXPECT_EQ(ExitCodeFor(absl::NotFoundError("")), 3);
  EXPECT_EQ(ExitCodeFor(absl::PermissionDeniedError("")), 4);
  EXPECT_EQ(ExitCodeFor(absl::UnauthenticatedError("")), 4);
  EXPECT_EQ(ExitCodeFor(absl::UnavailableError("")), 5);
  EXPECT_EQ(ExitCodeFor(absl::DeadlineExceededError("")), 5);
  EXPECT_EQ(ExitCodeFor(absl::InvalidArgumentError("")), 6);
  EXPECT_EQ(ExitCodeFor(absl::FailedPreconditionError("")), 7);
  EXPECT_EQ(ExitCodeFor(absl::AlreadyExistsError("")), 7);
  EXPECT_EQ(ExitCodeFor(absl::AbortedError("")), 7);
}

TEST(FormatError, WhatCauseAndHint_ThreeLines) {
  const absl::Status status = WithHint(
      WithWhat(absl::NotFoundError("no job j-1"), "cannot get job j-1"),
      "qloractl list");
  EXPECT_EQ(FormatError(status),
            "error: cannot get job j-1\ncause: no job j-1\n"
            "hint: qloractl list\n");
}

TEST(FormatError, MessageAlone_OneLine) {
  EXPECT_EQ(FormatError(absl::InternalError("broken")), "error: broken\n");
}

TEST(FormatError, ManyCauses_Indented) {
  const absl::Status status =
      WithWhat(absl::InvalidArgumentError("1:1: a\n2:1: b\n"), "bad file");
  EXPECT_EQ(FormatError(status),
            "error: bad file\ncause: 1:1: a\n       2:1: b\n");
}

TEST(WithWhat, SaidAlready_Stays) {
  const absl::Status status =
      WithWhat(WithWhat(absl::InternalError("x"), "inner"), "outer");
  EXPECT_EQ(FormatError(status), "error: inner\ncause: x\n");
}

TEST(ShellWord, WhatAShellWouldChange_IsQuoted) {
  EXPECT_EQ(ShellWord("/a/b-c_d.e=1"), "/a/b-c_d.e=1");
  EXPECT_EQ(ShellWord("My Model"), "'My Model'");
  EXPECT_EQ(ShellWord("it's"), "'it'\\''s'");
  EXPECT_EQ(ShellWord(""), "''");
}

TEST(WithHint, Ok_StaysOk) {
  EXPECT_TRUE(WithHint(WithWhat(absl::OkStatus(), "a"), "b").ok());
}

}  // namespace
}  // namespace qlora::client
