// Curves in a terminal, drawn with braille dots (two by four in a character).
// Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "qlora/v1/job.pb.h"

namespace qlora::client {

struct Series {
  std::string name;
  // x, y; values that are not finite leave a gap.
  std::vector<std::pair<double, double>> points;
  // An ANSI colour, 31 to 36.
  int color = 36;
  // Tells it from others where there is no colour; a character of ASCII.
  char mark = '*';
};

struct PlotStyle {
  // Of the whole chart, in characters.
  int width = 80;
  int height = 12;
  // Braille; otherwise each curve's mark on a plain grid. Several curves
  // without colour are always drawn with their marks.
  bool utf8 = true;
  bool color = false;
};

// Title line, the curves with the range of y at the left, the range of x below.
// Says so when there is nothing to draw.
std::string DrawChart(const std::string& title,
                      const std::vector<Series>& series,
                      const PlotStyle& style);

// Loss with evaluation loss, and the learning rate below.
std::string DrawMetrics(const std::vector<v1::MetricPoint>& points,
                        const PlotStyle& style);

}  // namespace qlora::client
