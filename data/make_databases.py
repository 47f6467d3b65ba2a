"""Make the four small databases and the questions about them: `python data/make_databases.py [folder]`.

Writes `databases/<db_id>.sqlite`, `databases_2/<db_id>.sqlite` and `questions.jsonl` under `folder` (default: `sql`
beside this file), the same bytes on every run. The second folder holds the same tables with other rows: a query that is
right in both is seldom right by accident. Nothing is written before each right query has been judged right and each
wrong one wrong by the `sql` task, in both. All people, books, shops and teams are invented.
"""

import json
import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEEDS = {"databases": 7, "databases_2": 107}
# The file header records which SQLite library wrote it; a fixed number there makes the bytes the same everywhere.
VERSION_FIELD, VERSION = slice(96, 100), (3_040_001).to_bytes(4, "big")

FIRST = (
    "Ada Bruno Clara Dmitri Elena Farid Greta Hugo Ines Jonas Kaya Liam Mira Noor Oscar Petra Quinn Rosa Sami Tara "
    "Umar Vera Wanda Xenia Yusuf Zoe Anton Bella Cyrus Dalia Emil Freya Goran Hana Idris Julia Kofi Lena Marco Nadia"
)
LAST = (
    "Adler Brook Castro Dahl Ek Frost Gomez Hale Ito Jansen Kovac Lund Moreau Novak Okafor Park Quist Rossi Sato Toth"
)
TITLES = "Biology Chemistry Physics Algebra Geometry History Geography Music Drama Latin Economics Astronomy"
TEAMS = "Comets Herons Foxes Anchors Millers Ravens Wolves Pilots Otters Badgers Kites Giants"

SCHEMAS = {
    "school": """\
CREATE TABLE student (id INTEGER PRIMARY KEY, name TEXT NOT NULL, grade INTEGER NOT NULL, city TEXT);
CREATE TABLE course (id INTEGER PRIMARY KEY, title TEXT NOT NULL, teacher TEXT NOT NULL, credits INTEGER NOT NULL);
CREATE TABLE enrollment (
    student_id INTEGER NOT NULL REFERENCES student (id),
    course_id INTEGER NOT NULL REFERENCES course (id),
    score INTEGER,
    PRIMARY KEY (student_id, course_id)
);""",
    "library": """\
CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT NOT NULL, born INTEGER NOT NULL);
CREATE TABLE book (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    author_id INTEGER NOT NULL REFERENCES author (id),
    genre TEXT NOT NULL,
    year INTEGER NOT NULL,
    pages INTEGER
);
CREATE TABLE loan (
    id INTEGER PRIMARY KEY,
    book_id INTEGER NOT NULL REFERENCES book (id),
    reader TEXT NOT NULL,
    taken TEXT NOT NULL,
    returned TEXT
);""",
    "shop": """\
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, joined INTEGER NOT NULL);
CREATE TABLE product (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    category TEXT NOT NULL,
    price INTEGER NOT NULL,
    stock INTEGER
);
CREATE TABLE purchase (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customer (id),
    product_id INTEGER NOT NULL REFERENCES product (id),
    quantity INTEGER NOT NULL,
    day TEXT NOT NULL
);""",
    "league": """\
CREATE TABLE team (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, founded INTEGER NOT NULL);
CREATE TABLE player (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    team_id INTEGER REFERENCES team (id),
    position TEXT NOT NULL,
    goals INTEGER NOT NULL
);
CREATE TABLE game (
    id INTEGER PRIMARY KEY,
    home_id INTEGER NOT NULL REFERENCES team (id),
    away_id INTEGER NOT NULL REFERENCES team (id),
    day TEXT NOT NULL,
    home_goals INTEGER,
    away_goals INTEGER
);""",
}


def people(rng, count):
    """`count` different full names."""
    names = rng.sample(FIRST.split(), count)
    return [f"{first} {rng.choice(LAST.split())}" for first in names]


def dates(rng, count):
    """`count` days of 2024, in order."""
    return sorted(f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}" for _ in range(count))


def school(rng):
    cities = ["Riverton", "Riverside", "Oakdale", "Millbrook", None]
    students = [(i, name, rng.randint(9, 12), rng.choice(cities)) for i, name in enumerate(people(rng, 30), 1)]
    titles = TITLES.split()
    teachers = [f"{title} {name}" for title, name in zip(["Ms", "Mr"] * 4, LAST.split(), strict=False)]
    courses = [(i, title, rng.choice(teachers), rng.randint(2, 5)) for i, title in enumerate(titles, 1)]
    scores = [55, 60, 62, 68, 70, 75, 78, 80, 85, 88, 90, 95, None]
    pairs = rng.sample([(s, c) for s in range(1, 27) for c in range(1, 13)], 56)
    pairs = {*pairs, (5, 4), (5, 10), (9, 4), (9, 10)}  # two students who take both Algebra and Latin
    enrollments = [(s, c, rng.choice(scores)) for s, c in sorted(pairs)]
    top = [i for i, (_, course, _) in enumerate(enrollments) if course == 2][:2]
    return {
        "student": students,
        "course": courses,
        "enrollment": [(s, c, 95 if i in top else score) for i, (s, c, score) in enumerate(enrollments)],
    }


def library(rng):
    countries = ["Norway", "Ghana", "Japan", "Chile", "Ireland", "Canada"]
    authors = [(i, name, rng.choice(countries), rng.randint(1860, 1985)) for i, name in enumerate(people(rng, 14), 1)]
    heads = ["The Silent", "A Distant", "The Last", "An Honest", "The Glass", "The Hidden", "A Winter", "The Paper"]
    tails = ["Harbour", "Orchard", "Lantern", "Mountain", "Voyage", "Garden", "Archive", "River"]
    titles = rng.sample([f"{head} {tail}" for head in heads for tail in tails], 36)
    genres = ["fantasy", "mystery", "history", "poetry", "science"]
    pages = [96, 144, 180, 212, 256, 288, 320, 352, 410, 480, None]
    books = []
    for i, title in enumerate(titles, 1):
        author = authors[rng.randrange(11)]  # the last three have no book here
        year = author[3] + rng.randint(24, 39)
        books.append((i, title, author[0], rng.choice(genres), year, rng.choice(pages)))
    books[4] = (*books[4][:5], 612)
    books[20] = (*books[20][:5], 612)
    readers = people(rng, 14)
    loans = []
    for i, day in enumerate(dates(rng, 55), 1):
        returned = f"2025-{rng.randint(1, 3):02}-{rng.randint(1, 28):02}" if rng.random() < 0.8 else None
        loans.append((i, rng.randint(1, 30), rng.choice(readers), day, returned))
    return {"author": authors, "book": books, "loan": loans}


def shop(rng):
    cities = ["Lisbon", "Porto", "Faro", "Braga"]
    customers = [(i, name, rng.choice(cities), rng.randint(2018, 2024)) for i, name in enumerate(people(rng, 24), 1)]
    goods = {
        "drinks": [("green tea", 6), ("coffee", 9), ("apple juice", 3), ("cocoa", 7), ("lemonade", 2)],
        "kitchen": [("kettle", 35), ("teapot", 35), ("mug", 8), ("wooden spoon", 4), ("grater", 11)],
        "stationery": [("notebook", 5), ("fountain pen", 24), ("eraser", 1), ("ruler", 10), ("stapler", 12)],
        "games": [("chess set", 28), ("puzzle", 15), ("card deck", 7), ("dice", 4)],
    }
    named = [(name, category, price) for category, things in goods.items() for name, price in things]
    products = [(i, *thing, rng.choice([0, 3, 8, 12, 20, 40, None])) for i, thing in enumerate(named, 1)]
    products[-1] = (*products[-1][:4], 0)
    purchases = [
        (i, rng.randint(1, 21), rng.randint(1, 17), rng.randint(1, 6), day) for i, day in enumerate(dates(rng, 60), 1)
    ]
    purchases[50] = (51, 9, 13, 60, purchases[50][4])  # sixty erasers: many things, little money
    return {"customer": customers, "product": products, "purchase": purchases}


def league(rng):
    cities = ["Northport", "Eastvale", "Southam", "Westbury", "Highfield", "Lowmoor"]
    names = TEAMS.split()
    founded = rng.sample(range(1890, 1999), 12)
    teams = [(i, name, rng.choice(cities), founded[i - 1]) for i, name in enumerate(names, 1)]
    positions = ["goalkeeper", "defender", "midfielder", "forward"]
    squad = [*range(1, 12), *range(1, 12), *[rng.randint(1, 11) for _ in range(14)], None, None, None]
    players = []
    for i, (name, team) in enumerate(zip(people(rng, 39), squad, strict=True), 1):
        position = rng.choice(positions)
        players.append((i, name, team, position, rng.randint(0, {"goalkeeper": 1, "defender": 5}.get(position, 16))))
    players[3], players[17] = (*players[3][:3], "forward", 17), (*players[17][:3], "forward", 17)
    players[-1] = (*players[-1][:3], "goalkeeper", 0)  # one of those without a team
    games = []
    for i, day in enumerate(dates(rng, 50), 1):
        home, away = rng.sample(range(1, 13), 2)
        score = (rng.randint(0, 4), rng.randint(0, 4)) if i <= 44 else (None, None)
        games.append((i, home, away, day, *score))
    return {"team": teams, "player": players, "game": games}


MAKERS = {"school": school, "library": library, "shop": shop, "league": league}

# question: ([right queries, the first being the gold one], [wrong queries])
QUESTIONS = {
    "school": [
        (
            "Which students live in Riverton?",
            [
                "SELECT name FROM student WHERE city = 'Riverton'",
                "SELECT name FROM student WHERE id IN (SELECT id FROM student WHERE city = 'Riverton')",
                "SELECT name FROM student EXCEPT SELECT name FROM student WHERE city <> 'Riverton' OR city IS NULL",
            ],
            ["SELECT name FROM student WHERE city LIKE 'River%'"],
        ),
        (
            "How many students have no city on record?",
            [
                "SELECT COUNT(*) FROM student WHERE city IS NULL",
                "SELECT COUNT(*) - COUNT(city) FROM student",
                "SELECT SUM(city IS NULL) FROM student",
            ],
            ["SELECT COUNT(*) FROM student WHERE city = NULL", "SELECT COUNT(city) FROM student"],
        ),
        (
            "What are the names of the students who take Biology?",
            [
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title = 'Biology'",
                "SELECT name FROM student WHERE id IN (SELECT student_id FROM enrollment "
                "WHERE course_id = (SELECT id FROM course WHERE title = 'Biology'))",
                "SELECT name FROM student AS s WHERE EXISTS (SELECT 1 FROM enrollment AS e JOIN course AS c "
                "ON c.id = e.course_id WHERE e.student_id = s.id AND c.title = 'Biology')",
            ],
            [
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title = 'Chemistry'"
            ],
        ),
        (
            "Which students are not enrolled in any course?",
            [
                "SELECT name FROM student WHERE id NOT IN (SELECT student_id FROM enrollment)",
                "SELECT name FROM student AS s WHERE NOT EXISTS "
                "(SELECT 1 FROM enrollment AS e WHERE e.student_id = s.id)",
                "SELECT s.name FROM student AS s LEFT JOIN enrollment AS e ON e.student_id = s.id "
                "WHERE e.student_id IS NULL",
                "SELECT name FROM student EXCEPT SELECT s.name FROM student AS s "
                "JOIN enrollment AS e ON e.student_id = s.id",
            ],
            ["SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id WHERE e.score IS NULL"],
        ),
        (
            "Which courses do more than five students take?",
            [
                "SELECT c.title FROM course AS c JOIN enrollment AS e ON e.course_id = c.id "
                "GROUP BY c.id HAVING COUNT(*) > 5",
                "SELECT title FROM course WHERE id IN "
                "(SELECT course_id FROM enrollment GROUP BY course_id HAVING COUNT(*) > 5)",
                "SELECT title FROM course AS c WHERE "
                "(SELECT COUNT(*) FROM enrollment AS e WHERE e.course_id = c.id) > 5",
            ],
            [
                "SELECT c.title FROM course AS c JOIN enrollment AS e ON e.course_id = c.id "
                "GROUP BY c.id HAVING COUNT(*) >= 5"
            ],
        ),
        (
            "Who got the best score in Chemistry? Name everyone who shares it.",
            [
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title = 'Chemistry' AND e.score = "
                "(SELECT MAX(score) FROM enrollment JOIN course ON course.id = course_id WHERE title = 'Chemistry')",
                "SELECT name FROM (SELECT s.name, RANK() OVER (ORDER BY e.score DESC) AS place FROM student AS s "
                "JOIN enrollment AS e ON e.student_id = s.id JOIN course AS c ON c.id = e.course_id "
                "WHERE c.title = 'Chemistry') WHERE place = 1",
            ],
            [
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title = 'Chemistry' ORDER BY e.score DESC LIMIT 1"
            ],
        ),
        (
            "What is the average score in each course? Leave missing scores out; give the title and the average.",
            [
                "SELECT c.title, AVG(e.score) FROM course AS c JOIN enrollment AS e ON e.course_id = c.id "
                "GROUP BY c.id",
                "SELECT c.title, SUM(e.score) * 1.0 / COUNT(e.score) FROM course AS c "
                "JOIN enrollment AS e ON e.course_id = c.id GROUP BY c.title",
                "SELECT title, (SELECT AVG(score) FROM enrollment WHERE course_id = course.id) FROM course "
                "WHERE id IN (SELECT course_id FROM enrollment)",
            ],
            [
                "SELECT c.title, SUM(e.score) * 1.0 / COUNT(*) FROM course AS c "
                "JOIN enrollment AS e ON e.course_id = c.id GROUP BY c.id"
            ],
        ),
        (
            "List the students of grade 12 in alphabetical order.",
            [
                "SELECT name FROM student WHERE grade = 12 ORDER BY name",
                "SELECT name FROM student WHERE grade IN (12) ORDER BY 1",
                "SELECT name FROM student GROUP BY name HAVING MAX(grade) = 12 ORDER BY name",
            ],
            [
                "SELECT name FROM student WHERE grade = 12",
                "SELECT name FROM student WHERE grade = 12 ORDER BY name DESC",
            ],
        ),
        (
            "Which teachers teach more than one course?",
            [
                "SELECT teacher FROM course GROUP BY teacher HAVING COUNT(*) > 1",
                "SELECT DISTINCT a.teacher FROM course AS a JOIN course AS b ON a.teacher = b.teacher AND a.id <> b.id",
                "SELECT DISTINCT teacher FROM course AS a WHERE EXISTS "
                "(SELECT 1 FROM course AS b WHERE b.teacher = a.teacher AND b.id <> a.id)",
            ],
            ["SELECT DISTINCT teacher FROM course"],
        ),
        (
            "Which students take both Algebra and Latin?",
            [
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id JOIN course AS c "
                "ON c.id = e.course_id WHERE c.title IN ('Algebra', 'Latin') GROUP BY s.id HAVING COUNT(*) = 2",
                "SELECT name FROM student JOIN enrollment ON student_id = student.id JOIN course "
                "ON course.id = course_id WHERE title = 'Algebra' INTERSECT SELECT name FROM student JOIN enrollment "
                "ON student_id = student.id JOIN course ON course.id = course_id WHERE title = 'Latin'",
                "SELECT name FROM student WHERE id IN (SELECT student_id FROM enrollment JOIN course "
                "ON course.id = course_id WHERE title = 'Algebra') AND id IN (SELECT student_id FROM enrollment "
                "JOIN course ON course.id = course_id WHERE title = 'Latin')",
            ],
            [
                "SELECT DISTINCT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title IN ('Algebra', 'Latin')",
                "SELECT s.name FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id WHERE c.title = 'Algebra' AND c.title = 'Latin'",
            ],
        ),
        (
            "How many credits does each student take in total? Put zero for students without courses.",
            [
                "SELECT s.name, COALESCE(SUM(c.credits), 0) FROM student AS s LEFT JOIN enrollment AS e "
                "ON e.student_id = s.id LEFT JOIN course AS c ON c.id = e.course_id GROUP BY s.id",
                "SELECT name, COALESCE((SELECT SUM(credits) FROM enrollment JOIN course ON course.id = course_id "
                "WHERE student_id = student.id), 0) FROM student",
                "SELECT name, TOTAL(credits) FROM student LEFT JOIN (SELECT student_id, credits FROM enrollment "
                "JOIN course ON course.id = course_id) AS taken ON taken.student_id = student.id GROUP BY student.id",
            ],
            [
                "SELECT s.name, SUM(c.credits) FROM student AS s JOIN enrollment AS e ON e.student_id = s.id "
                "JOIN course AS c ON c.id = e.course_id GROUP BY s.id"
            ],
        ),
        (
            "How many students are there in each grade?",
            [
                "SELECT grade, COUNT(*) FROM student GROUP BY grade",
                "SELECT DISTINCT grade, COUNT(*) OVER (PARTITION BY grade) FROM student",
                "SELECT DISTINCT grade, (SELECT COUNT(*) FROM student AS b WHERE b.grade = a.grade) FROM student AS a",
            ],
            ["SELECT grade, COUNT(city) FROM student GROUP BY grade"],
        ),
    ],
    "library": [
        (
            "Which authors have written a fantasy book?",
            [
                "SELECT name FROM author WHERE id IN (SELECT author_id FROM book WHERE genre = 'fantasy')",
                "SELECT DISTINCT a.name FROM author AS a JOIN book AS b ON b.author_id = a.id "
                "WHERE b.genre = 'fantasy'",
                "SELECT name FROM author AS a WHERE EXISTS "
                "(SELECT 1 FROM book AS b WHERE b.author_id = a.id AND b.genre = 'fantasy')",
            ],
            ["SELECT a.name FROM author AS a JOIN book AS b ON b.author_id = a.id WHERE b.genre = 'fantasy'"],
        ),
        (
            "How many of our books did each author write? Include the authors of whom we have none.",
            [
                "SELECT a.name, COUNT(b.id) FROM author AS a LEFT JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
                "SELECT name, (SELECT COUNT(*) FROM book WHERE author_id = author.id) FROM author",
                "SELECT a.name, COALESCE(n.books, 0) FROM author AS a LEFT JOIN "
                "(SELECT author_id, COUNT(*) AS books FROM book GROUP BY author_id) AS n ON n.author_id = a.id",
            ],
            [
                "SELECT a.name, COUNT(*) FROM author AS a JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
                "SELECT a.name, COUNT(*) FROM author AS a LEFT JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
            ],
        ),
        (
            "Which books have never been lent?",
            [
                "SELECT title FROM book WHERE id NOT IN (SELECT book_id FROM loan)",
                "SELECT title FROM book AS b WHERE NOT EXISTS (SELECT 1 FROM loan AS l WHERE l.book_id = b.id)",
                "SELECT b.title FROM book AS b LEFT JOIN loan AS l ON l.book_id = b.id WHERE l.id IS NULL",
                "SELECT title FROM book EXCEPT SELECT title FROM book JOIN loan ON book_id = book.id",
            ],
            ["SELECT b.title FROM book AS b JOIN loan AS l ON l.book_id = b.id WHERE l.returned IS NULL"],
        ),
        (
            "Which books are out on loan, that is, have a loan that was not returned? Name each book once.",
            [
                "SELECT DISTINCT b.title FROM book AS b JOIN loan AS l ON l.book_id = b.id WHERE l.returned IS NULL",
                "SELECT title FROM book WHERE id IN (SELECT book_id FROM loan WHERE returned IS NULL)",
                "SELECT title FROM book AS b WHERE EXISTS "
                "(SELECT 1 FROM loan AS l WHERE l.book_id = b.id AND l.returned IS NULL)",
            ],
            [
                "SELECT title FROM book WHERE id IN (SELECT book_id FROM loan WHERE returned = NULL)",
                "SELECT title FROM book WHERE id IN (SELECT book_id FROM loan WHERE returned IS NOT NULL)",
            ],
        ),
        (
            "Which genre do we have the most books of?",
            [
                "SELECT genre FROM book GROUP BY genre ORDER BY COUNT(*) DESC LIMIT 1",
                "SELECT genre FROM book GROUP BY genre HAVING COUNT(*) = "
                "(SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM book GROUP BY genre))",
                "WITH n AS (SELECT genre, COUNT(*) AS books FROM book GROUP BY genre) "
                "SELECT genre FROM n WHERE books = (SELECT MAX(books) FROM n)",
            ],
            ["SELECT genre FROM book GROUP BY genre ORDER BY COUNT(*) LIMIT 1", "SELECT MAX(genre) FROM book"],
        ),
        (
            "What are the titles of our longest books? There may be several of the same length.",
            [
                "SELECT title FROM book WHERE pages = (SELECT MAX(pages) FROM book)",
                "SELECT a.title FROM book AS a WHERE a.pages IS NOT NULL AND NOT EXISTS "
                "(SELECT 1 FROM book AS b WHERE b.pages > a.pages)",
                "SELECT title FROM (SELECT title, RANK() OVER (ORDER BY pages DESC) AS place FROM book) "
                "WHERE place = 1",
            ],
            ["SELECT title FROM book ORDER BY pages DESC LIMIT 1"],
        ),
        (
            "Which books appeared before 1950 and have more than 250 pages?",
            [
                "SELECT title FROM book WHERE year < 1950 AND pages > 250",
                "SELECT title FROM book WHERE year < 1950 INTERSECT SELECT title FROM book WHERE pages > 250",
                "SELECT title FROM (SELECT * FROM book WHERE pages > 250) WHERE year < 1950",
            ],
            ["SELECT title FROM book WHERE year < 1950 OR pages > 250", "SELECT title FROM book WHERE year < 1950"],
        ),
        (
            "Which readers have borrowed more than four times?",
            [
                "SELECT reader FROM loan GROUP BY reader HAVING COUNT(*) > 4",
                "SELECT reader FROM (SELECT reader, COUNT(*) AS loans FROM loan GROUP BY reader) WHERE loans > 4",
                "SELECT DISTINCT reader FROM loan AS a WHERE "
                "(SELECT COUNT(*) FROM loan AS b WHERE b.reader = a.reader) > 4",
            ],
            ["SELECT reader FROM loan GROUP BY reader HAVING COUNT(*) >= 4"],
        ),
        (
            "How many different readers have borrowed something?",
            [
                "SELECT COUNT(DISTINCT reader) FROM loan",
                "SELECT COUNT(*) FROM (SELECT DISTINCT reader FROM loan)",
                "SELECT COUNT(*) FROM (SELECT reader FROM loan GROUP BY reader)",
            ],
            ["SELECT COUNT(reader) FROM loan"],
        ),
        (
            "Which authors born after 1890 do we have no book of?",
            [
                "SELECT name FROM author WHERE born > 1890 AND id NOT IN (SELECT author_id FROM book)",
                "SELECT a.name FROM author AS a LEFT JOIN book AS b ON b.author_id = a.id "
                "WHERE a.born > 1890 AND b.id IS NULL",
                "SELECT name FROM author WHERE born > 1890 EXCEPT "
                "SELECT name FROM author JOIN book ON author_id = author.id",
            ],
            ["SELECT name FROM author WHERE born > 1890"],
        ),
        (
            "What is the average number of pages per genre, among the books whose length we know?",
            [
                "SELECT genre, AVG(pages) FROM book GROUP BY genre",
                "SELECT genre, SUM(pages) * 1.0 / COUNT(pages) FROM book WHERE pages IS NOT NULL GROUP BY genre",
                "SELECT DISTINCT genre, AVG(pages) OVER (PARTITION BY genre) FROM book",
            ],
            ["SELECT genre, AVG(COALESCE(pages, 0)) FROM book GROUP BY genre"],
        ),
        (
            "In which year did the first book of each author come out? Give the author's name and the year.",
            [
                "SELECT a.name, MIN(b.year) FROM author AS a JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
                "SELECT DISTINCT a.name, b.year FROM author AS a JOIN book AS b ON b.author_id = a.id "
                "WHERE NOT EXISTS (SELECT 1 FROM book AS c WHERE c.author_id = a.id AND c.year < b.year)",
                "SELECT DISTINCT a.name, MIN(b.year) OVER (PARTITION BY a.id) FROM author AS a "
                "JOIN book AS b ON b.author_id = a.id",
            ],
            [
                "SELECT a.name, MAX(b.year) FROM author AS a JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
                "SELECT a.name, MIN(b.year) FROM author AS a LEFT JOIN book AS b ON b.author_id = a.id GROUP BY a.id",
            ],
        ),
    ],
    "shop": [
        (
            "Which customers have never bought anything?",
            [
                "SELECT name FROM customer WHERE id NOT IN (SELECT customer_id FROM purchase)",
                "SELECT name FROM customer AS c WHERE NOT EXISTS "
                "(SELECT 1 FROM purchase AS p WHERE p.customer_id = c.id)",
                "SELECT c.name FROM customer AS c LEFT JOIN purchase AS p ON p.customer_id = c.id WHERE p.id IS NULL",
            ],
            ["SELECT DISTINCT c.name FROM customer AS c JOIN purchase AS p ON p.customer_id = c.id"],
        ),
        (
            "How much money did each category bring in?",
            [
                "SELECT p.category, SUM(p.price * b.quantity) FROM product AS p "
                "JOIN purchase AS b ON b.product_id = p.id GROUP BY p.category",
                "SELECT category, SUM(price * sold) FROM (SELECT product_id, SUM(quantity) AS sold FROM purchase "
                "GROUP BY product_id) AS s JOIN product ON product.id = s.product_id GROUP BY category",
                "SELECT DISTINCT category, (SELECT SUM(q.price * b.quantity) FROM purchase AS b JOIN product AS q "
                "ON q.id = b.product_id WHERE q.category = p.category) FROM product AS p",
            ],
            ["SELECT p.category, SUM(p.price) FROM product AS p JOIN purchase AS b ON b.product_id = p.id GROUP BY 1"],
        ),
        (
            "Which products cost more than the average product?",
            [
                "SELECT name FROM product WHERE price > (SELECT AVG(price) FROM product)",
                "SELECT p.name FROM product AS p CROSS JOIN (SELECT AVG(price) AS mean FROM product) AS a "
                "WHERE p.price > a.mean",
                "SELECT name FROM (SELECT name, price, AVG(price) OVER () AS mean FROM product) WHERE price > mean",
            ],
            ["SELECT name FROM product WHERE price < (SELECT AVG(price) FROM product)"],
        ),
        (
            "What are the most expensive products in each category? Give the category and the product, ties included.",
            [
                "SELECT category, name FROM product AS p WHERE price = "
                "(SELECT MAX(price) FROM product AS q WHERE q.category = p.category)",
                "SELECT category, name FROM product WHERE (category, price) IN "
                "(SELECT category, MAX(price) FROM product GROUP BY category)",
                "SELECT category, name FROM (SELECT category, name, RANK() OVER "
                "(PARTITION BY category ORDER BY price DESC) AS place FROM product) WHERE place = 1",
            ],
            [
                "SELECT category, name FROM product GROUP BY category HAVING price = MAX(price)",
                "SELECT category, name FROM product WHERE price = (SELECT MAX(price) FROM product)",
            ],
        ),
        (
            "Which customers have bought both a kettle and a teapot?",
            [
                "SELECT name FROM customer WHERE id IN (SELECT customer_id FROM purchase JOIN product "
                "ON product.id = product_id WHERE product.name = 'kettle') AND id IN (SELECT customer_id "
                "FROM purchase JOIN product ON product.id = product_id WHERE product.name = 'teapot')",
                "SELECT c.name FROM customer AS c JOIN purchase AS b ON b.customer_id = c.id JOIN product AS p "
                "ON p.id = b.product_id WHERE p.name IN ('kettle', 'teapot') "
                "GROUP BY c.id HAVING COUNT(DISTINCT p.name) = 2",
            ],
            [
                "SELECT DISTINCT c.name FROM customer AS c JOIN purchase AS b ON b.customer_id = c.id "
                "JOIN product AS p ON p.id = b.product_id WHERE p.name = 'kettle' OR p.name = 'teapot'"
            ],
        ),
        (
            "How many products are out of stock? Products whose stock is unknown do not count.",
            [
                "SELECT COUNT(*) FROM product WHERE stock = 0",
                "SELECT SUM(stock = 0) FROM product",
                "SELECT COUNT(CASE WHEN stock = 0 THEN 1 END) FROM product",
            ],
            ["SELECT COUNT(*) FROM product WHERE stock IS NULL", "SELECT COUNT(*) FROM product WHERE NOT stock > 5"],
        ),
        (
            "Which customers live in Lisbon or in Porto?",
            [
                "SELECT name FROM customer WHERE city IN ('Lisbon', 'Porto')",
                "SELECT name FROM customer WHERE city = 'Lisbon' OR city = 'Porto'",
                "SELECT name FROM customer WHERE city = 'Lisbon' UNION ALL "
                "SELECT name FROM customer WHERE city = 'Porto'",
            ],
            ["SELECT name FROM customer WHERE city = 'Lisbon' AND city = 'Porto'"],
        ),
        (
            "Who spent the most money in our shop?",
            [
                "SELECT c.name FROM customer AS c JOIN purchase AS b ON b.customer_id = c.id JOIN product AS p "
                "ON p.id = b.product_id GROUP BY c.id ORDER BY SUM(p.price * b.quantity) DESC LIMIT 1",
                "WITH spent AS (SELECT customer_id, SUM(price * quantity) AS total FROM purchase JOIN product "
                "ON product.id = product_id GROUP BY customer_id) SELECT name FROM customer WHERE id IN "
                "(SELECT customer_id FROM spent WHERE total = (SELECT MAX(total) FROM spent))",
            ],
            [
                "SELECT c.name FROM customer AS c JOIN purchase AS b ON b.customer_id = c.id "
                "GROUP BY c.id ORDER BY SUM(b.quantity) DESC, c.id LIMIT 1",
            ],
        ),
        (
            "Of which products did we sell more than fifteen pieces in all?",
            [
                "SELECT p.name FROM product AS p JOIN purchase AS b ON b.product_id = p.id "
                "GROUP BY p.id HAVING SUM(b.quantity) > 15",
                "SELECT name FROM product WHERE id IN "
                "(SELECT product_id FROM purchase GROUP BY product_id HAVING SUM(quantity) > 15)",
                "SELECT name FROM product WHERE "
                "(SELECT SUM(quantity) FROM purchase WHERE product_id = product.id) > 15",
            ],
            ["SELECT p.name FROM product AS p JOIN purchase AS b ON b.product_id = p.id WHERE b.quantity > 15"],
        ),
        (
            "How many purchases were there in each month? Write months as in 2024-05.",
            [
                "SELECT strftime('%Y-%m', day), COUNT(*) FROM purchase GROUP BY 1",
                "SELECT substr(day, 1, 7), COUNT(*) FROM purchase GROUP BY substr(day, 1, 7)",
                "SELECT DISTINCT substr(day, 1, 7), COUNT(*) OVER (PARTITION BY substr(day, 1, 7)) FROM purchase",
            ],
            ["SELECT day, COUNT(*) FROM purchase GROUP BY day"],
        ),
        (
            "Which products has nobody from Lisbon bought yet?",
            [
                "SELECT name FROM product WHERE id NOT IN (SELECT product_id FROM purchase JOIN customer "
                "ON customer.id = customer_id WHERE city = 'Lisbon')",
                "SELECT name FROM product AS p WHERE NOT EXISTS (SELECT 1 FROM purchase AS b JOIN customer AS c "
                "ON c.id = b.customer_id WHERE b.product_id = p.id AND c.city = 'Lisbon')",
                "SELECT name FROM product EXCEPT SELECT p.name FROM product AS p JOIN purchase AS b "
                "ON b.product_id = p.id JOIN customer AS c ON c.id = b.customer_id WHERE c.city = 'Lisbon'",
            ],
            [
                "SELECT DISTINCT p.name FROM product AS p JOIN purchase AS b ON b.product_id = p.id "
                "JOIN customer AS c ON c.id = b.customer_id WHERE c.city <> 'Lisbon'"
            ],
        ),
        (
            "What are the three cheapest products and their prices, the cheapest first?",
            [
                "SELECT name, price FROM product ORDER BY price LIMIT 3",
                "SELECT name, price FROM (SELECT name, price, ROW_NUMBER() OVER (ORDER BY price) AS place "
                "FROM product) WHERE place <= 3 ORDER BY place",
                "SELECT name, price FROM product AS p WHERE "
                "(SELECT COUNT(*) FROM product AS q WHERE q.price < p.price) < 3 ORDER BY price",
            ],
            [
                "SELECT name, price FROM product ORDER BY price DESC LIMIT 3",
                "SELECT name, price FROM (SELECT name, price FROM product ORDER BY price LIMIT 3) ORDER BY price DESC",
            ],
        ),
    ],
    "league": [
        (
            "Which players have no team at the moment?",
            [
                "SELECT name FROM player WHERE team_id IS NULL",
                "SELECT p.name FROM player AS p LEFT JOIN team AS t ON t.id = p.team_id WHERE t.id IS NULL",
                "SELECT name FROM player AS p WHERE NOT EXISTS (SELECT 1 FROM team AS t WHERE t.id = p.team_id)",
            ],
            ["SELECT name FROM player WHERE team_id = NULL", "SELECT name FROM player WHERE team_id NOT IN (1, 2, 3)"],
        ),
        (
            "How many players does each team have? Teams without players should show zero.",
            [
                "SELECT t.name, COUNT(p.id) FROM team AS t LEFT JOIN player AS p ON p.team_id = t.id GROUP BY t.id",
                "SELECT name, (SELECT COUNT(*) FROM player WHERE team_id = team.id) FROM team",
                "SELECT t.name, COALESCE(n.players, 0) FROM team AS t LEFT JOIN "
                "(SELECT team_id, COUNT(*) AS players FROM player GROUP BY team_id) AS n ON n.team_id = t.id",
            ],
            ["SELECT t.name, COUNT(*) FROM team AS t JOIN player AS p ON p.team_id = t.id GROUP BY t.id"],
        ),
        (
            "Who are the top scorers? Several players may share first place.",
            [
                "SELECT name FROM player WHERE goals = (SELECT MAX(goals) FROM player)",
                "SELECT name FROM (SELECT name, RANK() OVER (ORDER BY goals DESC) AS place FROM player) "
                "WHERE place = 1",
                "SELECT a.name FROM player AS a LEFT JOIN player AS b ON b.goals > a.goals WHERE b.id IS NULL",
            ],
            ["SELECT name FROM player ORDER BY goals DESC LIMIT 1"],
        ),
        (
            "How many games did the home team win?",
            [
                "SELECT COUNT(*) FROM game WHERE home_goals > away_goals",
                "SELECT SUM(home_goals > away_goals) FROM game",
                "SELECT COUNT(CASE WHEN home_goals - away_goals > 0 THEN id END) FROM game",
            ],
            ["SELECT COUNT(*) FROM game WHERE home_goals >= away_goals", "SELECT COUNT(home_goals) FROM game"],
        ),
        (
            "How many games are still to be played, that is, have no result yet?",
            [
                "SELECT COUNT(*) FROM game WHERE home_goals IS NULL",
                "SELECT COUNT(*) - COUNT(home_goals) FROM game",
                "SELECT COUNT(*) FROM (SELECT id FROM game EXCEPT SELECT id FROM game WHERE home_goals >= 0)",
            ],
            ["SELECT COUNT(*) FROM game WHERE home_goals = 0"],
        ),
        (
            "Which teams have never won a home game?",
            [
                "SELECT name FROM team WHERE id NOT IN (SELECT home_id FROM game WHERE home_goals > away_goals)",
                "SELECT name FROM team AS t WHERE NOT EXISTS "
                "(SELECT 1 FROM game AS g WHERE g.home_id = t.id AND g.home_goals > g.away_goals)",
                "SELECT name FROM team EXCEPT SELECT t.name FROM team AS t JOIN game AS g ON g.home_id = t.id "
                "WHERE g.home_goals > g.away_goals",
                "SELECT t.name FROM team AS t LEFT JOIN game AS g ON g.home_id = t.id AND g.home_goals > g.away_goals "
                "GROUP BY t.id HAVING COUNT(g.id) = 0",
            ],
            ["SELECT DISTINCT t.name FROM team AS t JOIN game AS g ON g.home_id = t.id WHERE home_goals <= away_goals"],
        ),
        (
            "How many goals did each team score at home? Leave out teams that have not played at home.",
            [
                "SELECT t.name, SUM(g.home_goals) FROM team AS t JOIN game AS g ON g.home_id = t.id "
                "WHERE g.home_goals IS NOT NULL GROUP BY t.id",
                "SELECT t.name, n.goals FROM team AS t JOIN (SELECT home_id, SUM(home_goals) AS goals FROM game "
                "GROUP BY home_id) AS n ON n.home_id = t.id WHERE n.goals IS NOT NULL",
            ],
            [
                "SELECT t.name, SUM(g.away_goals) FROM team AS t JOIN game AS g ON g.home_id = t.id "
                "WHERE g.away_goals IS NOT NULL GROUP BY t.id",
            ],
        ),
        (
            "Which players scored more goals than the average of their own team?",
            [
                "SELECT name FROM player AS p WHERE goals > "
                "(SELECT AVG(goals) FROM player AS q WHERE q.team_id = p.team_id)",
                "SELECT p.name FROM player AS p JOIN (SELECT team_id, AVG(goals) AS mean FROM player "
                "GROUP BY team_id) AS a ON a.team_id = p.team_id WHERE p.goals > a.mean",
                "SELECT name FROM (SELECT name, team_id, goals, AVG(goals) OVER (PARTITION BY team_id) AS mean "
                "FROM player) WHERE goals > mean AND team_id IS NOT NULL",
            ],
            ["SELECT name FROM player WHERE goals > (SELECT AVG(goals) FROM player)"],
        ),
        (
            "Which teams have no goalkeeper?",
            [
                "SELECT name FROM team WHERE id NOT IN "
                "(SELECT team_id FROM player WHERE position = 'goalkeeper' AND team_id IS NOT NULL)",
                "SELECT name FROM team AS t WHERE NOT EXISTS "
                "(SELECT 1 FROM player AS p WHERE p.team_id = t.id AND p.position = 'goalkeeper')",
                "SELECT t.name FROM team AS t LEFT JOIN player AS p ON p.team_id = t.id AND p.position = 'goalkeeper' "
                "WHERE p.id IS NULL",
            ],
            [
                "SELECT DISTINCT t.name FROM team AS t JOIN player AS p ON p.team_id = t.id "
                "WHERE p.position <> 'goalkeeper'",
                "SELECT name FROM team WHERE id NOT IN (SELECT team_id FROM player WHERE position = 'goalkeeper')",
            ],
        ),
        (
            "Show every game that has a result: home team, away team, home goals and away goals.",
            [
                "SELECT h.name, a.name, g.home_goals, g.away_goals FROM game AS g JOIN team AS h ON h.id = g.home_id "
                "JOIN team AS a ON a.id = g.away_id WHERE g.home_goals IS NOT NULL",
                "SELECT (SELECT name FROM team WHERE id = home_id), (SELECT name FROM team WHERE id = away_id), "
                "home_goals, away_goals FROM game WHERE home_goals IS NOT NULL",
            ],
            [
                "SELECT h.name, a.name, g.home_goals, g.away_goals FROM game AS g JOIN team AS h ON h.id = g.home_id "
                "JOIN team AS a ON a.id = g.away_id"
            ],
        ),
        (
            "How many goals did each team score in all its games, home and away? Every team has played.",
            [
                "SELECT t.name, SUM(s.goals) FROM team AS t JOIN (SELECT home_id AS team_id, home_goals AS goals "
                "FROM game UNION ALL SELECT away_id, away_goals FROM game) AS s ON s.team_id = t.id GROUP BY t.id",
                "SELECT t.name, SUM(CASE WHEN g.home_id = t.id THEN g.home_goals ELSE g.away_goals END) "
                "FROM team AS t JOIN game AS g ON t.id IN (g.home_id, g.away_id) GROUP BY t.id",
                "SELECT name, (SELECT TOTAL(home_goals) FROM game WHERE home_id = team.id) + "
                "(SELECT TOTAL(away_goals) FROM game WHERE away_id = team.id) FROM team",
            ],
            [
                "SELECT t.name, SUM(s.goals) FROM team AS t JOIN (SELECT home_id AS team_id, home_goals AS goals "
                "FROM game UNION SELECT away_id, away_goals FROM game) AS s ON s.team_id = t.id GROUP BY t.id"
            ],
        ),
        (
            "List the teams founded after 1950, the youngest team first.",
            [
                "SELECT name FROM team WHERE founded > 1950 ORDER BY founded DESC",
                "SELECT name FROM team WHERE founded > 1950 ORDER BY -founded",
                "SELECT name FROM team WHERE NOT founded <= 1950 ORDER BY founded DESC",
            ],
            [
                "SELECT name FROM team WHERE founded > 1950 ORDER BY founded",
                "SELECT name FROM team ORDER BY founded DESC",
            ],
        ),
    ],
}


def build(path, schema, tables, page_size=1024):
    """Write one database file; its bytes depend on nothing but the arguments."""
    connection = sqlite3.connect(path)
    connection.executescript(f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = OFF;" + schema)
    for table, rows in tables.items():
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    connection.commit()
    connection.execute("PRAGMA foreign_key_check")
    connection.close()
    raw = bytearray(path.read_bytes())
    raw[VERSION_FIELD] = VERSION
    path.write_bytes(raw)


def questions():
    """The rows of questions.jsonl."""
    for db_id, asked in QUESTIONS.items():
        for number, (question, right, wrong) in enumerate(asked, 1):
            prompt = f"{SCHEMAS[db_id]}\n\n-- {question}\n-- Answer with one SQLite query."
            meta = {"db_id": db_id, "question": question, "also_right": right[1:], "wrong": wrong}
            yield {"id": f"{db_id}-{number:02}", "prompt": prompt, "answer": right[0], "meta": meta}


def check(rows, databases):
    """Raise ValueError unless right queries return rows and are judged right, in different words, and wrong ones wrong."""
    sys.path.insert(0, str(HERE.parent))  # so that the script also runs without the package installed
    from dphrl_lite.tasks import Problem, cases, get

    task = get("sql", databases=databases)
    for row in rows:
        problem, distinct = Problem(**row), set()
        if not len(cases.preview(databases / f"{row['meta']['db_id']}.sqlite", row["answer"])):
            raise ValueError(f"{row['id']}: returns no rows, so every query that returns none would be right")
        for sql in [row["answer"], *row["meta"]["also_right"]]:
            verdict = task.verify(problem, sql)
            if not verdict.correct or verdict.distinct in distinct:
                raise ValueError(f"{row['id']}: should be right, in a style of its own: {sql}\n{verdict}")
            distinct.add(verdict.distinct)
        for sql in row["meta"]["wrong"]:
            if (verdict := task.verify(problem, sql)).correct or verdict.reason.startswith("SQL error"):
                raise ValueError(f"{row['id']}: should run and be wrong: {sql}\n{verdict}")


def main(folder):
    """Make everything in a scratch folder, check it, and only then move it into `folder`."""
    rows = list(questions())
    with tempfile.TemporaryDirectory() as scratch:
        for name, seed in SEEDS.items():
            databases = Path(scratch) / name
            databases.mkdir()
            for db_id, make in MAKERS.items():
                build(databases / f"{db_id}.sqlite", SCHEMAS[db_id], make(random.Random(f"{seed}-{db_id}")))
            check(rows, databases)
        shutil.copytree(scratch, folder, dirs_exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(rows)} questions on {len(MAKERS)} databases, each with {len(SEEDS)} sets of rows, in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "sql")
