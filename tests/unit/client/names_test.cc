#include "client/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/errors.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

TEST(RegistryName, MakesTheNearestName) {
  EXPECT_EQ(RegistryName("tiny"), "tiny");
  EXPECT_EQ(RegistryName("Llama-2-7B"), "llama-2-7b");
  EXPECT_EQ(RegistryName("My Model (new)"), "my-model-new");
  EXPECT_EQ(RegistryName("_x.y_z"), "x.y_z");
  EXPECT_EQ(RegistryName("\xc3\xa9"), "");
  EXPECT_EQ(RegistryName(std::string(80, 'A')), std::string(63, 'a'));
}

TEST(ChooseName, AName_IsTakenAsItIsOrRefusedWithOneThatWouldDo) {
  EXPECT_EQ(*ChooseName("tiny", "Other"), "tiny");
  EXPECT_EQ(*ChooseName("", "Tiny"), "tiny");
  const absl::Status status = ChooseName("Tiny", "x").status();
  EXPECT_EQ(ExitCodeFor(status), kExitUsage);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("--name Tiny: must be 1 to 63 of"),
                             HasSubstr("for instance tiny")));
  EXPECT_THAT(std::string(ChooseName("", "++").status().message()),
              HasSubstr("give --name, since ++ makes none"));
}

}  // namespace
}  // namespace qlora::client
