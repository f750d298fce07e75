#include "client/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_split.h"
#include "client/terminal.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

std::vector<std::string> Lines(const std::string& text) {
  return absl::StrSplit(text, '\n', absl::SkipEmpty());
}

PlotStyle Ascii(int width, int height) {
  PlotStyle style;
  style.width = width;
  style.height = height;
  style.utf8 = false;
  return style;
}

TEST(DrawChart, FallingLine_GoesFromTopLeftToBottomRight) {
  EXPECT_EQ(
      DrawChart("loss", {{"loss", {{1, 3}, {2, 2}, {3, 1}}}}, Ascii(22, 6)),
      "loss\n"
      "         3 |***\n"
      "           |   ****\n"
      "         1 |       **\n"
      "           +---------\n"
      "            1       3\n");
}

TEST(DrawChart, Braille_KeepsTheWidth) {
  PlotStyle style;
  style.width = 60;
  style.height = 10;
  std::vector<std::pair<double, double>> points;
  for (int i = 0; i < 500; ++i) points.emplace_back(i, std::sin(i / 40.0));
  const std::vector<std::string> lines =
      Lines(DrawChart("wave", {{"wave", points}}, style));
  EXPECT_EQ(lines.size(), 10u);
  for (const std::string& line : lines) EXPECT_LE(DisplayWidth(line), 60);
}

TEST(DrawChart, NoPoints_SaysSo) {
  EXPECT_THAT(DrawChart("loss", {{"loss", {}}}, Ascii(40, 8)),
              HasSubstr("nothing to draw"));
}

TEST(DrawChart, OneValueOrNoFiniteOne_IsFine) {
  EXPECT_THAT(DrawChart("l", {{"l", {{5, 2}}}}, Ascii(30, 8)), HasSubstr("*"));
  EXPECT_THAT(DrawChart("l", {{"l", {{1, NAN}, {2, INFINITY}}}}, Ascii(30, 8)),
              HasSubstr("nothing to draw"));
}

TEST(DrawChart, NarrowTerminal_StillDraws) {
  EXPECT_THAT(DrawChart("l", {{"l", {{1, 1}, {2, 2}}}}, Ascii(5, 3)),
              HasSubstr("*"));
}

TEST(DrawChart, Color_PaintsEachSeries) {
  PlotStyle style;
  style.color = true;
  const std::string text = DrawChart(
      "t", {{"a", {{0, 0}, {1, 0}}, 36}, {"b", {{0, 1}, {1, 1}}, 33}}, style);
  EXPECT_THAT(text, HasSubstr("\x1b[36m"));
  EXPECT_THAT(text, HasSubstr("\x1b[33m"));
  // Once a row, not once a character.
  EXPECT_LT(std::ranges::count(text, '\x1b'), 16);
}

TEST(DrawChart, SeveralCurvesWithoutColor_HaveMarksOfTheirOwn) {
  for (const bool utf8 : {true, false}) {
    PlotStyle style = Ascii(40, 8);
    style.utf8 = utf8;
    const std::string text = DrawChart(
        "t", {{"a", {{0, 0}, {1, 0}}}, {"b", {{0, 1}, {1, 1}}, 33, 'o'}},
        style);
    const std::vector<std::string> lines = Lines(text);
    EXPECT_EQ(lines[0], "t  * a  o b");
    EXPECT_THAT(lines[1], testing::AllOf(HasSubstr("oooo"),
                                         testing::Not(HasSubstr("*"))));
    EXPECT_THAT(
        lines[lines.size() - 3],
        testing::AllOf(HasSubstr("****"), testing::Not(HasSubstr("o"))));
  }
}

TEST(DrawMetrics, ShowsEvaluationOnlyWhenThere) {
  std::vector<v1::MetricPoint> points(2);
  points[0].set_step(1);
  points[0].set_loss(3);
  points[1].set_step(2);
  points[1].set_loss(2);
  EXPECT_THAT(DrawMetrics(points, Ascii(40, 8)),
              testing::Not(HasSubstr("evaluation")));
  points[1].set_eval_loss(2.5);
  const std::string text = DrawMetrics(points, Ascii(40, 8));
  EXPECT_THAT(text, HasSubstr("evaluation loss"));
  EXPECT_THAT(text, HasSubstr("3.0000 -> 2.0000"));
  EXPECT_THAT(text, HasSubstr("learning rate"));
}

}  // namespace
}  // namespace qlora::client
