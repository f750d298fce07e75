find_package(SQLite3 REQUIRED)
