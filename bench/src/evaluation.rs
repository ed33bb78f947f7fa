//! The evaluation: experiments are run, and reported from their raw data alone.
//!
//! An experiment is a script that lists its parts and runs one repetition of one of them
//! ([`experiment`]); what a repetition has printed is a file of its own in the results
//! ([`results`]), so that a run can be interrupted and resumed ([`run`]). The report
//! ([`report`]) and its figures ([`plot`]) follow from these files and from nothing else, and so
//! does what the model predicts ([`model`]).

pub mod experiment;
pub mod machine;
pub mod model;
pub mod plot;
pub mod report;
pub mod results;
pub mod run;
pub mod summary;
