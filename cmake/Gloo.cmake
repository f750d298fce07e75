# Gloo is inside libtorch_cpu; only its headers come from Debian's libgloo-dev.
# Never link libgloo: its symbols would collide.
find_path(QLORA_GLOO_INCLUDE gloo/config.h REQUIRED)
