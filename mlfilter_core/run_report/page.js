// The table of files can be sorted and searched. Only one page of rows is drawn at a time, so that large tables are fast.
(() => {
  const { columns, numbers, rows } = JSON.parse(document.getElementById("rows").textContent);
  const PAGE = 50;
  const [thead, tbody] = [document.querySelector("#table thead"), document.querySelector("#table tbody")];
  const [search, found] = ["search", "found"].map((id) => document.getElementById(id));
  const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
  const started = columns.indexOf("started");
  const status = columns.indexOf("status");
  // Columns without a value in any row are hidden.
  const shown = columns.map((_, i) => i).filter((i) => rows.some((row) => row[i] !== "" && row[i] !== 0 && row[i] !== null));
  const texts = rows.map((row) => row.filter((_, i) => !numbers[i]).join("\n").toLowerCase());
  let order = rows.map((_, i) => i);
  let sorted = { column: 0, ascending: true };
  let page = 0;

  const written = (value, i) => {
    if (value === null || value === "") return "";
    if (i === started) return value ? new Date(value * 1000).toISOString().slice(0, 16).replace("T", " ") : "";
    return numbers[i] ? value.toLocaleString("en-US", { maximumFractionDigits: 2 }) : value;
  };

  const select = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { column, ascending } = sorted;
    const compare = numbers[column] ? (a, b) => (a ?? -Infinity) - (b ?? -Infinity)
      : new Intl.Collator("en", { numeric: true }).compare;
    order = rows.map((_, i) => i).filter((i) => words.every((word) => texts[i].includes(word)));
    order.sort((a, b) => (ascending ? 1 : -1) * compare(rows[a][column], rows[b][column]) || a - b);
    page = 0;
    draw();
  };

  const draw = () => {
    const last = Math.max(0, Math.ceil(order.length / PAGE) - 1);
    page = Math.min(Math.max(0, page), last);
    const part = order.slice(page * PAGE, (page + 1) * PAGE);
    tbody.replaceChildren(...part.map((i) => {
      const line = document.createElement("tr");
      if (rows[i][status] === "failed") line.className = "failed";
      line.append(...shown.map((k) => {
        const cell = document.createElement("td");
        cell.textContent = written(rows[i][k], k);
        if (numbers[k]) cell.className = "number";
        else if (columns[k] === "reason") cell.className = "reason";
        return cell;
      }));
      return line;
    }));
    for (const [i, head] of [...thead.querySelectorAll("th")].entries()) {
      const is_sorted = shown[i] === sorted.column;
      head.setAttribute("aria-sort", is_sorted ? (sorted.ascending ? "ascending" : "descending") : "none");
    }
    const n = (value) => value.toLocaleString("en-US");
    const range = part.length ? `${n(page * PAGE + 1)} to ${n(page * PAGE + part.length)} of ` : "";
    found.textContent = `${range}${n(order.length)} rows` + (order.length < rows.length ? `, ${n(rows.length)} in all` : "");
    previous.disabled = page === 0;
    next.disabled = page === last;
  };

  const heads = document.createElement("tr");
  heads.append(...shown.map((i) => {
    const [head, button] = [document.createElement("th"), document.createElement("button")];
    button.type = "button";
    button.textContent = { flow: "step", documents_per_s: "documents/s", started: "started (UTC)" }[columns[i]] ?? columns[i];
    if (numbers[i]) head.className = "number";
    head.scope = "col";
    button.addEventListener("click", () => {
      // Numbers start with the largest: people look for those.
      sorted = { column: i, ascending: sorted.column === i ? !sorted.ascending : !numbers[i] };
      select();
    });
    head.append(button);
    return head;
  }));
  thead.append(heads);
  search.addEventListener("input", select);
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  select();
})();
