"""Console commands: one file each reads its config, calls, prints. Console scripts begin here."""

from xlm_train.runtime.entry import EntryPoint

xlm_eval = EntryPoint("xlm_train.commands.evaluate")
xlm_export = EntryPoint("xlm_train.commands.export")
xlm_generate = EntryPoint("xlm_train.commands.generate")
xlm_import = EntryPoint("xlm_train.commands.import_")
xlm_plan = EntryPoint("xlm_train.commands.plan")
xlm_report = EntryPoint("xlm_train.commands.report")
xlm_train = EntryPoint("xlm_train.commands.train")
xlm_translate = EntryPoint("xlm_train.commands.translate")
