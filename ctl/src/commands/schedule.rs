//! `mirror snapshot schedule add|list|remove|status`

use control::{Interval, Schedule, ScheduledImage, Schedules};

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::rbd::ScheduleCommand;
use crate::output::{self, Document, Table};
use crate::spec::{self, Positionals};

/// Carries out a command about schedules.
pub async fn run(request: &Request, command: &ScheduleCommand) -> Result<(), Failure> {
    match command {
        ScheduleCommand::Add { level, interval, start_time } => {
            let level = spec::level(level)?;
            let interval = given(interval, start_time).ok_or_else(|| {
                Failure::invalid("no interval was given; it must be a number and m, h or d")
            })?;
            let site = Site::connect(request).await?;
            Ok(Schedules::new(&site.cluster).add(&level.resolve(&site.default_pool()), &interval).await?)
        }
        ScheduleCommand::Remove { level, interval, start_time } => {
            let level = spec::level(level)?;
            let interval = given(interval, start_time);
            let site = Site::connect(request).await?;
            let level = level.resolve(&site.default_pool());
            Ok(Schedules::new(&site.cluster).remove(&level, interval.as_ref()).await?)
        }
        ScheduleCommand::List { level, recursive, format } => {
            let level = spec::level(level)?;
            let document = output::document(format)?;
            let site = Site::connect(request).await?;
            let (level, schedules) = (level.resolve(&site.default_pool()), Schedules::new(&site.cluster));
            if *recursive {
                return output::put(&all(&schedules.list(&level).await?, document));
            }
            match schedules.get(&level).await? {
                Some(schedule) => output::put(&one(&schedule, document)),
                None => Err(Failure::new(
                    libc::ENOENT,
                    "there is no schedule for just this; --recursive also shows those of what is within",
                )),
            }
        }
        ScheduleCommand::Status { level, format } => {
            let level = spec::level(level)?;
            let document = output::document(format)?;
            let site = Site::connect(request).await?;
            let due = Schedules::new(&site.cluster).status(&level.resolve(&site.default_pool())).await?;
            output::put(&status(&due, document))
        }
    }
}

fn given(interval: &Option<String>, start_time: &Option<String>) -> Option<Interval> {
    let mut words = Positionals::new([interval, start_time]);
    let interval = words.take()?;
    Some(Interval { interval, start_time: words.take().unwrap_or_default() })
}

fn dump_items(document: &mut Document, schedule: &Schedule) {
    document.array("items", |d| {
        for item in &schedule.items {
            d.object("item", |d| {
                d.string("interval", &item.interval);
                d.string("start_time", &item.start_time);
            });
        }
    });
}

fn in_words(schedule: &Schedule) -> String {
    schedule.items.iter().map(Interval::to_string).collect::<Vec<_>>().join(", ")
}

/// The schedule of one level.
fn one(schedule: &Schedule, document: Option<Document>) -> String {
    match document {
        Some(mut document) => {
            dump_items(&mut document, schedule);
            document.finish()
        }
        None => format!("{}\n", in_words(schedule)),
    }
}

/// The schedules of a level and of what is within.
fn all(schedules: &[Schedule], document: Option<Document>) -> String {
    let placed = schedules.iter().filter_map(|schedule| Some((schedule.place()?, schedule)));
    let Some(mut document) = document else {
        let mut table = Table::new(&["POOL", "NAMESPACE", "IMAGE", "SCHEDULE"]);
        for (place, schedule) in placed {
            table.row(place.into_iter().chain([in_words(schedule)]));
        }
        return table.to_string();
    };
    document.array("schedules", |d| {
        for ([pool, namespace, image], schedule) in placed {
            d.object("schedule", |d| {
                d.string("pool", &pool);
                d.string("namespace", &namespace);
                d.string("image", &image);
                dump_items(d, schedule);
            });
        }
    });
    document.finish()
}

/// Which images are due when.
fn status(due: &[ScheduledImage], document: Option<Document>) -> String {
    let Some(mut document) = document else {
        let mut table = Table::new(&["SCHEDULE TIME", "IMAGE"]);
        for image in due {
            table.row([image.schedule_time.clone(), image.image.clone()]);
        }
        return table.to_string();
    };
    document.array("scheduled_images", |d| {
        for image in due {
            d.object("image", |d| {
                d.string("schedule_time", &image.schedule_time);
                d.string("image", &image.image);
            });
        }
    });
    document.finish()
}
