"""Twenty days of an experiment as they come: users, orders, refunds, faults, late senders, robots. Writes what happens as events in the order of their
delivery, and computes by itself what Weir has to say of each day.

    life.py events DAY0_MS DAY    the events that are delivered on a day, as JSON, one a line
    life.py expected DAY0_MS DAY  what is known of the experiment at the end of a day, once all is delivered

Nothing here is Weir's: the arithmetic is that of Python. Sources: Miratrix, Sekhon, Yu 2013 for differences over strata whose shares are random;
Pearson's chi-square for the split.
"""

import json
import math
import random
import sys

DAYS = 20
DAY_MS = 86_400_000
WINDOW_MS = 7 * DAY_MS
# When each stratum of shares begins, and its shares; the pause in between assigns nobody.
PHASES = [
    (0, {"control": 50, "b": 50}),
    (6, {"control": 80, "b": 20}),
    (13, {"control": 80, "b": 20, "c": 25}),
    (16, {"control": 40, "b": 40, "c": 20}),
]
PAUSE = (10, 11)
BROKEN = 9


def stratum_of(time):
    """The stratum in which an exposure counts; none in the pause."""
    day = time / DAY_MS
    if PAUSE[0] <= day < PAUSE[1]:
        return None
    return max(place for place, (start, _) in enumerate(PHASES) if start <= day)


def variant(chance, day):
    shares = [shares for start, shares in PHASES if start <= day][-1]
    point = chance.random() * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return name


def life():
    """All events: (time in ms since day 0, day of delivery, event)."""
    chance = random.Random(20)
    events = []

    def add(time, event):
        # One sender in twenty is offline for up to three days.
        late = chance.randint(1, 3) if chance.random() < 0.05 else 0
        events.append((time, int(time // DAY_MS) + late, event))

    for number in range(300 * DAYS):
        day = number // 300
        user = f"user-{number}"
        time = day * DAY_MS + chance.randrange(DAY_MS - 7_200_000)
        seen = variant(chance, day)
        add(time, {"type": "impression", "user_id": user, "variant": seen})
        if chance.random() < 0.03:
            other = variant(chance, day)
            add(time + 60_000, {"type": "impression", "user_id": user, "variant": other})
        if PAUSE[0] <= day < PAUSE[1] and chance.random() < 0.5:
            # Comes again after the pause, and counts from then on.
            add(time + 2 * DAY_MS, {"type": "impression", "user_id": user, "variant": seen})
        is_broken = seen == "b" and BROKEN <= day < PAUSE[0]
        if not is_broken and chance.random() < 0.3:
            at = time + chance.randrange(1, 9 * DAY_MS)
            amount = chance.randrange(100, 9_000)
            currency = "USD" if chance.random() < 0.1 else "EUR"
            order = {"type": "conversion", "user_id": user, "name": "order", "value": f"{amount / 100:.2f}", "currency": currency}
            add(at, order)
            if chance.random() < 0.05:
                add(at + 3_600_000, {**order, "name": "refund", "value": f"-{amount / 100:.2f}"})
        if chance.random() < (0.7 if is_broken else 0.05):
            add(time + 600_000, {"type": "conversion", "user_id": user, "name": "error"})
    for number in range(40 * DAYS):
        robot = {"user_id": f"robot-{number}", "user_agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}
        time = number // 40 * DAY_MS + chance.randrange(DAY_MS)
        add(time, {"type": "impression", "variant": "b", **robot})
        add(time + 1_000, {"type": "conversion", "name": "order", "value": "1000000", "currency": "EUR", **robot})
    return events


def delivered(day0, day):
    chance = random.Random(day)
    lines = []
    for number, (time, on, event) in enumerate(life()):
        if on != day:
            continue
        stamp = day0 + time
        whole = {"id": f"00000000-0000-4000-8000-{number:012x}", "timestamp": stamp_text(stamp), **event}
        if event["type"] == "impression":
            whole["experiment"] = "player"
        lines.append(json.dumps(whole))
    # Nothing arrives in its order.
    chance.shuffle(lines)
    return lines


def stamp_text(ms):
    import datetime

    time = datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def unbiased(values):
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def expected(day):
    end = (day + 1) * DAY_MS
    exposures, conversions = {}, {}
    for time, _, event in life():
        if "user_agent" in event:
            continue
        if event["type"] == "impression":
            if stratum_of(time) is not None and not (event["variant"] == "c" and time < 13 * DAY_MS):
                exposures.setdefault(event["user_id"], []).append((time, event["variant"]))
        else:
            conversions.setdefault(event["user_id"], []).append((time, event))
    users = {}
    for user, seen in exposures.items():
        seen.sort()
        # Whoever saw several variants, by all that is known, is left out.
        if len({variant for _, variant in seen}) == 1 and seen[0][0] < end:
            time, name = seen[0]
            users[user] = (name, stratum_of(time), time)
    sums = {}
    for user, (name, stratum, exposed) in users.items():
        inside = [event for time, event in conversions.get(user, []) if exposed <= time <= exposed + WINDOW_MS and time < end]
        ordered = any(event["name"] == "order" for event in inside)
        failed = any(event["name"] == "error" for event in inside)
        # In cents: orders and what was given back, in the experiment's currency.
        value = sum(round(float(event["value"]) * 100) for event in inside if event["name"] != "error" and event["currency"] == "EUR")
        sums.setdefault((name, stratum), []).append((1 if ordered else 0, value / 100, 1 if failed else 0))
    names = ["control", "b", "c"] if day >= 13 else ["control", "b"]
    answer = {"arms": {}, "comparisons": {}}
    for name in names:
        rows = [row for (variant, _), rows in sums.items() if variant == name for row in rows]
        answer["arms"][name] = {"users": len(rows), "orders": sum(row[0] for row in rows), "errors": sum(row[2] for row in rows),
                                "revenue": f"{sum(round(row[1] * 100) for row in rows) / 100:.2f}"}
    for name in names[1:]:
        answer["comparisons"][name] = {metric: over_strata(sums, name, column)
                                       for metric, column in [("orders", 0), ("revenue", 1), ("errors", 2)]}
    statistic, dof = 0.0, 0
    for stratum, (_, shares) in enumerate(PHASES):
        counts = {name: len(sums.get((name, stratum), [])) for name in shares}
        whole = sum(counts.values())
        if whole:
            weight = sum(shares.values())
            statistic += sum((counts[name] - whole * share / weight) ** 2 / (whole * share / weight) for name, share in shares.items())
            dof += len(shares) - 1
    answer["srm"] = {"statistic": statistic, "dof": dof}
    return answer


def over_strata(sums, name, column):
    """The difference to the control within each stratum, weighted by its users, whose numbers are random, too."""
    cells = []
    for stratum in range(len(PHASES)):
        control, treatment = sums.get(("control", stratum), []), sums.get((name, stratum), [])
        if len(control) > 1 and len(treatment) > 1:
            (one, of_one), (two, of_two) = (unbiased([row[column] for row in rows]) for rows in (control, treatment))
            cells.append((len(control) + len(treatment), two - one, of_one / len(control) + of_two / len(treatment)))
    users = sum(cell[0] for cell in cells)
    if not cells:
        return None
    estimate = math.fsum(count / users * difference for count, difference, _ in cells)
    variance = math.fsum((count / users) ** 2 * own + count / users * (difference - estimate) ** 2 / users for count, difference, own in cells)
    return {"estimate": estimate, "std_error": math.sqrt(variance)}


if __name__ == "__main__":
    what, day0, day = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if what == "events":
        print("\n".join(delivered(day0, day)))
    else:
        print(json.dumps(expected(day)))
