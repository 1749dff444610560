"""What the made corpus says, in the nine languages of the pocket tasks.

Sentences have slots: {n} and {m} persons, {o} a thing, {p} where something is. Words were chosen so that no slot
changes the form of another: names of one gender where verbs show it, things whose subject and object forms are alike.
Written for this project; Apache-2.0 like the rest of it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """One language."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    story: tuple[str, ...]  # sentences; the last ones of a paragraph ask for what the first ones said
    stop: str  # between sentences
    comment: str  # above a function {f} of the code snippets, with what it does as {e}
    table: tuple[str, str, str]  # heads of the two columns, and the word for their sum
    note: str  # a line to remember: {k} is worth {v}
    asked: str  # the question for it, long after, and its answer


WORDS: dict[str, Words] = {
    "en": Words(
        names=("Tom", "Anna", "Peter", "Lucy", "James", "Mary"),
        things=("the book", "the key", "the bread", "the ball", "the pencil", "the umbrella"),
        places=("in the garden", "at the station", "behind the house", "on the table", "near the river", "in the box"),
        story=(
            "{n} looks for {o} in the morning.",
            "{m} says that it was {p} yesterday.",
            "They walk together and talk about the weather.",
            "{n} finds {o} {p}.",
            "Where was {o}? It was {p}.",
            "In the evening {n} and {m} go home.",
        ),
        stop=" ",
        comment="# The function {f} returns {e}.",
        table=("name", "price", "total"),
        note="Remember: the number of {k} is {v}.",
        asked="What is the number of {k}? It is {v}.",
    ),
    "zh": Words(
        names=("小明", "小红", "李华", "王芳", "张伟", "小丽"),
        things=("书", "钥匙", "面包", "球", "铅笔", "雨伞"),
        places=("在花园里", "在车站", "在房子后面", "在桌子上", "在河边", "在盒子里"),
        story=(
            "早上{n}在找{o}。",
            "{m}说昨天它{p}。",
            "他们一起走路，谈论今天的天气。",
            "{n}发现{o}{p}。",
            "{o}在哪里？它{p}。",
            "晚上{n}和{m}一起回家。",
        ),
        stop="",
        comment="# 函数 {f} 返回 {e}。",
        table=("名称", "价格", "总计"),
        note="请记住：{k}的号码是{v}。",
        asked="{k}的号码是多少？是{v}。",
    ),
    "ja": Words(
        names=("太郎", "花子", "健太", "さくら", "一郎", "美咲"),
        things=("本", "鍵", "パン", "ボール", "鉛筆", "傘"),
        places=("庭に", "駅に", "家の裏に", "机の上に", "川のそばに", "箱の中に"),
        story=(
            "朝、{n}は{o}を探しています。",
            "{m}は、昨日それが{p}あったと言います。",
            "二人は一緒に歩いて、天気の話をします。",
            "{n}は{o}が{p}あるのを見つけました。",
            "{o}はどこにありましたか。{p}ありました。",
            "夕方、{n}と{m}は家に帰ります。",
        ),
        stop="",
        comment="# 関数 {f} は {e} を返します。",
        table=("名前", "値段", "合計"),
        note="覚えてください。{k}の番号は{v}です。",
        asked="{k}の番号は何ですか。{v}です。",
    ),
    "ko": Words(
        names=("민수", "지호", "유나", "수지", "현우", "지아"),
        things=("책", "공", "빵", "연필", "우산", "수첩"),
        places=("정원에", "역에", "집 뒤에", "책상 위에", "강가에", "상자 안에"),
        story=(
            "아침에 {n}는 {o}을 찾고 있습니다.",
            "{m}는 어제 그것이 {p} 있었다고 말합니다.",
            "두 사람은 함께 걸으며 날씨 이야기를 합니다.",
            "{n}는 {o}이 {p} 있는 것을 봅니다.",
            "{o}은 어디에 있었습니까? {p} 있었습니다.",
            "저녁에 {n}와 {m}는 집으로 돌아갑니다.",
        ),
        stop=" ",
        comment="# 함수 {f}는 {e}를 돌려줍니다.",
        table=("이름", "가격", "합계"),
        note="기억하세요: {k}의 번호는 {v}입니다.",
        asked="{k}의 번호는 무엇입니까? {v}입니다.",
    ),
    "ru": Words(
        names=("Иван", "Пётр", "Антон", "Сергей", "Борис", "Максим"),
        things=("мяч", "хлеб", "ключ", "зонт", "карандаш", "билет"),
        places=("в саду", "на вокзале", "за домом", "на столе", "у реки", "в коробке"),
        story=(
            "Утром {n} ищет {o}.",
            "{m} говорит, что вчера он был {p}.",
            "Они идут вместе и говорят о погоде.",
            "{n} находит {o} {p}.",
            "Где был {o}? Он был {p}.",
            "Вечером {n} и {m} идут домой.",
        ),
        stop=" ",
        comment="# Функция {f} возвращает {e}.",
        table=("название", "цена", "итого"),
        note="Запомните: номер {k} равен {v}.",
        asked="Какой номер у {k}? Это {v}.",
    ),
    "el": Words(
        names=("Νίκος", "Μαρία", "Γιώργος", "Ελένη", "Πέτρος", "Άννα"),
        things=("το βιβλίο", "το ψωμί", "το κλειδί", "το μολύβι", "το ποδήλατο", "το καπέλο"),
        places=("στον κήπο", "στον σταθμό", "πίσω από το σπίτι", "πάνω στο τραπέζι", "κοντά στο ποτάμι", "στο κουτί"),
        story=(
            "Το πρωί ψάχνει {o}: {n}.",
            "Χθες ήταν {p}, λέει {m}.",
            "Περπατούν μαζί και μιλούν για τον καιρό.",
            "Τελικά {o} βρίσκεται {p}.",
            "Πού ήταν {o}; Ήταν {p}.",
            "Το βράδυ γυρίζουν στο σπίτι, {n} και {m}.",
        ),
        stop=" ",
        comment="# Η συνάρτηση {f} επιστρέφει {e}.",
        table=("όνομα", "τιμή", "σύνολο"),
        note="Να θυμάσαι: ο αριθμός του {k} είναι {v}.",
        asked="Ποιος είναι ο αριθμός του {k}; Είναι {v}.",
    ),
    "ar": Words(
        names=("أحمد", "علي", "خالد", "يوسف", "سمير", "عمر"),
        things=("الكتاب", "المفتاح", "الخبز", "القلم", "الهاتف", "الكرسي"),
        places=("في الحديقة", "في المحطة", "خلف البيت", "فوق الطاولة", "قرب النهر", "في الصندوق"),
        story=(
            "في الصباح يبحث {n} عن {o}.",
            "يقول {m} إنه كان أمس {p}.",
            "يمشيان معا ويتحدثان عن الطقس.",
            "يجد {n} {o} {p}.",
            "أين كان {o}؟ كان {p}.",
            "في المساء يعود {n} و{m} إلى المنزل.",
        ),
        stop=" ",
        comment="# تعيد الدالة {f} القيمة {e}.",
        table=("الاسم", "السعر", "المجموع"),
        note="تذكر: رقم {k} هو {v}.",
        asked="ما هو رقم {k}؟ هو {v}.",
    ),
    "hi": Words(
        names=("राम", "मोहन", "अमित", "विजय", "रवि", "सुरेश"),
        things=("किताब", "चाबी", "रोटी", "गेंद", "कलम", "टोपी"),
        places=("बगीचे में", "स्टेशन पर", "घर के पीछे", "मेज़ पर", "नदी के पास", "डिब्बे में"),
        story=(
            "सुबह {n} {o} ढूँढता है।",
            "{m} कहता है कि कल वह {p} थी।",
            "दोनों साथ चलते हैं और मौसम की बात करते हैं।",
            "{n} को {o} {p} मिलती है।",
            "{o} कहाँ थी? वह {p} थी।",
            "शाम को {n} और {m} घर जाते हैं।",
        ),
        stop=" ",
        comment="# फलन {f} का मान {e} है।",
        table=("नाम", "दाम", "कुल"),
        note="याद रखो: {k} का अंक {v} है।",
        asked="{k} का अंक क्या है? वह {v} है।",
    ),
    "es": Words(
        names=("Carlos", "María", "Pedro", "Lucía", "Juan", "Elena"),
        things=("el libro", "el pan", "el balón", "el lápiz", "el paraguas", "el sombrero"),
        places=("en el jardín", "en la estación", "detrás de la casa", "sobre la mesa", "cerca del río", "en la caja"),
        story=(
            "Por la mañana {n} busca {o}.",
            "{m} dice que ayer estaba {p}.",
            "Caminan juntos y hablan del tiempo.",
            "{n} encuentra {o} {p}.",
            "¿Dónde estaba {o}? Estaba {p}.",
            "Por la noche {n} y {m} vuelven a casa.",
        ),
        stop=" ",
        comment="# La función {f} devuelve {e}.",
        table=("nombre", "precio", "suma"),
        note="Recuerda: el número de {k} es {v}.",
        asked="¿Cuál es el número de {k}? Es {v}.",
    ),
}
