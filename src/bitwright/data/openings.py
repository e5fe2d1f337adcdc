"""Beginnings of texts that a model continues: what calibration text is about, and in which languages.

Each kind is read in turn, so that any number of openings covers all kinds about evenly.
"""

from __future__ import annotations

from itertools import zip_longest

ENCYCLOPEDIA = (
    "The Veldra is a river in the northern highlands. It rises at an altitude of 1,420 metres on the slopes of Mount "
    "Karst and flows south for 212 kilometres before it reaches the",
    "The Battle of Lindow Bridge was fought on 14 May 1643 between the royal army and the forces of the northern "
    "towns. Before sunrise two regiments of foot crossed the",
    "Margaret Ellwood (3 March 1861 – 19 November 1934) was a British astronomer and teacher. Born in a mill town near "
    "Leeds, she was the fourth of seven children and",
    "The grey-headed reed warbler is a small passerine bird of the family Acrocephalidae. It was first described in "
    "1837, breeds in wetlands from Anatolia to Kazakhstan and",
    "Ashcombe is a village and civil parish in the county of Somerset. At the census of 2011 its population was 1,308. "
    "The parish church of St Andrew dates from the thirteenth century and",
    "The 1986 season was the club's forty-second in the first division. Under their new manager the team won nine of "
    "the opening twelve matches, lost the cup final after extra time, and",
    "Plate tectonics describes how the outer shell of the Earth is divided into plates that move over the mantle. "
    "Where two plates meet, one of them may slide beneath the other, which",
    "Harbour Lights is the third studio album by an American rock band. It was recorded in eleven days in Memphis, "
    "received mixed reviews on its release in September 1978, and",
    "The treaty was signed in Vienna after three years of negotiation. It ended the war, returned the fortresses along "
    "the coast to their former owners, and bound the signatories to",
    "Penicillin is a group of antibiotics that were first obtained from moulds. They stop bacteria from building their "
    "cell walls, so that the cells burst when they grow. In medicine they are",
)
PROSE = (
    "Officials said on Tuesday that the new railway station would open eight months later than planned because of "
    "flooding in the tunnel. A spokesman for the operator told reporters",
    "The old woman closed the door behind her and listened. Nothing moved in the house but the clock on the landing. "
    "She had not been here since the summer when",
    '"Where were you last night?" he asked without looking up from the newspaper.\n\n"At my sister\'s," she said. '
    '"You know that. You drove me there." He turned a page and',
    "Dear Ms Ortega,\n\nthank you for your letter of 12 June. I am sorry to hear that the lamp arrived with a broken "
    "shade. We have sent a new one today, and",
    "I have had this kettle for about six months now and use it every morning. It boils quickly and the handle stays "
    "cool, but the lid",
    "To make the dough, mix 500 g of flour with a teaspoon of salt, dissolve the yeast in lukewarm water and add it "
    "slowly. Knead for ten minutes until",
    "The company reported quarterly earnings of 1.24 dollars a share, above what analysts had expected, as higher "
    "prices made up for weaker demand in Europe. Its shares rose",
    "Many parents worry that their children spend too much time in front of screens. What research can tell us so far "
    "is less clear than headlines suggest, for",
)
QUESTIONS = (
    "What is the difference between weather and climate? Please explain it to a ten-year-old.",
    "I would like to visit Lisbon for three days in spring. Can you suggest a plan?",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Tom has 12 apples. He gives a third of them to Anna and buys 5 more. How many apples does he have now? Think step "
    "by step.",
    "Summarize the causes of the First World War in five bullet points.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and tests.",
    "My landlord wants to keep my deposit because of scratches on the floor. What can I do?",
    "Translate into French: The museum is closed on Mondays, but the garden is open all year.",
    "Compare solar and wind power in a table with advantages and disadvantages.",
    "¿Cuáles son los síntomas de la gripe y cuándo debo ir al médico?",
    "Wie funktioniert eine Wärmepumpe?",
    "请用简单的话解释什么是光合作用。",
)
DOCUMENTS = (
    "1. Introduction\n\nIn this paper we study how the training loss of a network depends on the number of its "
    "parameters and on the amount of data. Earlier work has",
    "Abstract. We report the effect of a twelve-week walking programme on blood pressure in 214 adults with "
    "hypertension. Participants were randomly assigned to",
    "Theorem 2. Let G be a finite group and let p be the smallest prime that divides its order. Then every subgroup of "
    "index p is normal.\n\nProof.",
    "Class methods\n\nA class method receives the class as its first argument, just as an instance method receives the "
    "instance. To declare one, use this idiom:",
    "## Installation\n\nThe package needs Python 3.9 or newer. Run the following command in a terminal:\n\n```bash\n",
    "The following table lists the options of the command. Options that take several values may be given more than once.\n\n",
    "This Agreement is made between the Licensor and the Licensee. Subject to the terms below, the Licensor grants the "
    "Licensee a",
    "Summary of the meeting on 3 March\n\n- The budget for the second quarter was approved.\n- Maria will",
)
CODE = (
    'import csv\nfrom pathlib import Path\n\n\ndef read_table(path: Path, delimiter: str = ",") -> list[dict[str, '
    'str]]:\n    """',
    "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n        self.balance = "
    "balance\n\n    def withdraw(self, amount):\n",
    "#include <stdio.h>\n#include <stdlib.h>\n\nstruct node {\n    int value;\n    struct node *next;\n};\n\nstatic "
    "struct node *",
    "SELECT c.name, COUNT(o.id) AS orders, SUM(o.total) AS revenue\nFROM customers c\nLEFT JOIN orders o ON",
    "export function useItems(url) {\n  const [items, setItems] = useState([]);\n  const [error, setError] = "
    "useState(null);\n\n",
    "use std::collections::HashMap;\n\nfn count_words(text: &str) -> HashMap<String, usize> {\n    let mut",
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n  <meta charset="utf-8">\n  <title>Garden diary</title>\n  <style>\n',
    '{\n  "name": "weather-station",\n  "version": "1.4.0",\n  "scripts": {\n    "build": "',
)
LANGUAGES = (
    "Москва — столица России, город федерального значения. Население города составляет более двенадцати миллионов "
    "человек. Первое упоминание о нём относится к 1147 году, когда",
    "Der Bodensee liegt im Alpenvorland an der Grenze von drei Staaten. Mit einer Fläche von 536 Quadratkilometern ist "
    "er der größte See des Landes und",
    "La ville se trouve au bord du fleuve, à une centaine de kilomètres de la mer. Fondée au douzième siècle, elle "
    "doit sa richesse au commerce du drap et",
    "El gobierno anunció ayer que subirá el salario mínimo a partir de enero. Según la ministra, la medida beneficiará "
    "a más de dos millones de trabajadores, aunque",
    "这座城市位于河流的下游，人口约三百万，是全省的经济和文化中心。早在两千多年前，这里就",
    "東京は日本の首都であり、世界でも有数の大都市である。江戸時代には幕府が置かれ、",
    "تقع المدينة في شمال البلاد على ساحل البحر، ويبلغ عدد سكانها نحو نصف مليون نسمة. وقد اشتهرت منذ القدم",
    "Зимой в деревне темнеет рано. Мальчик сидел у окна и смотрел, как падает снег, а бабушка рассказывала ему о том, как",
    "A cidade fica no litoral e é conhecida pelas suas praias e pela pesca. O porto foi construído no século XVI e",
    "Il treno per Milano è partito con venti minuti di ritardo. I viaggiatori aspettavano sulla banchina, mentre",
    "भारत एक विशाल देश है जहाँ अनेक भाषाएँ बोली जाती हैं। इसकी राजधानी नई दिल्ली है और",
    "서울은 대한민국의 수도이며 한강을 끼고 있는 도시이다. 조선 시대부터",
    "Warszawa leży nad Wisłą, w środkowej części kraju. Po wojnie miasto odbudowano, a jego starówka",
    "Thành phố nằm bên bờ sông và có lịch sử hơn một nghìn năm. Ngày nay, nơi đây",
)
KINDS = (ENCYCLOPEDIA, PROSE, QUESTIONS, DOCUMENTS, CODE, LANGUAGES)


def openings() -> list[tuple[str, bool]]:
    """(text, whether it is a question to be answered), one of each kind in turn."""
    rounds = zip_longest(*KINDS)
    return [(text, kind is QUESTIONS) for one in rounds for text, kind in zip(one, KINDS, strict=True) if text is not None]
