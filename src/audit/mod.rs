//! Conservation across both stores: gather, judge, report.
