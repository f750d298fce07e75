find_package(absl REQUIRED)
