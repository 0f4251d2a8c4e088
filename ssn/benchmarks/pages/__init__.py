"""What people read: tables, charts, the report and docs/performance.md, all made from result files."""
